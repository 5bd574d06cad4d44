"""The demo: the whole walk on a small network, from a trained net to a table and a report.

The network, retrofitted with SReLU(100) and with a tuned JumpReLU, is attacked white-box with the
cross-entropy and with the margin loss, gray-box from the undefended twin, and, where there is a
jump, through a smoothed backward pass. Both retrofits are audited, and beside them the same network
hardened by learned shifts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroact.activations.piecewise import JumpReLU, SReLU
from retroact.attacks.pgd import CLAIMED, PGD
from retroact.auditing.audit import Audit, audit
from retroact.checkpoint import load
from retroact.crafting.threat import Linf
from retroact.evaluation.metrics import robust_accuracy, worst_case
from retroact.executors import SERIAL, Executor
from retroact.experiments.cell import Cell, Model
from retroact.experiments.store import Store
from retroact.experiments.sweep import fill, plan
from retroact.experiments.tuning import ON_MARGIN, tune
from retroact.files import write
from retroact.ground import one_thread
from retroact.nets.data import data as read
from retroact.reports import html, plots
from retroact.reports.tables import Line, lines
from retroact.retrofitting.surgery import retrofit
from retroact.spec import show
from retroact.training.hardening import harden
from retroact.training.learnable import SHARPNESS


@dataclass(frozen=True)
class Scene:
    """What the demo runs on: a network, its data, a radius in pixels, and the clean accuracy to
    keep."""

    net: str
    test: str
    validation: str
    train: str
    eps: float
    keep: float


SCENES = {
    "digits": Scene("digits-cnn", "digits", "digits/validation", "digits/train", 0.1, 0.97),
    "mnist": Scene(
        "lenet-mnist", "mnist[:500]", "mnist/validation[:200]", "mnist/train[:5000]", 0.1, 0.99
    ),
}
KEPT = 12
# what the progress bar reckons with until tuning has said whether there is a jump to smooth
CELLS = 9
AUDITS = 20  # hardening and three audits, in the time of a cell


def run(
    name: str,
    store: Path,
    page: Path,
    *,
    executor: Executor = SERIAL,
    wait: bool = False,
    progress: Callable[[float, int], None] | None = None,
) -> tuple[list[Line], list[str], Path]:
    """Runs the demo on `name` (digits or mnist); returns the table's lines, what they say, and the
    page's path."""
    if name not in SCENES:
        raise ValueError(f"the demo knows {' and '.join(SCENES)}, got {name!r}")
    scene = SCENES[name]
    values = len(JumpReLU.grid)

    def tell(done: float, total: int) -> None:
        if progress is not None:
            progress(done, values + total + AUDITS)

    with one_thread():
        tuned = tune(
            load(scene.net),
            JumpReLU,
            read(scene.validation),
            Linf(scene.eps),
            keep=scene.keep,
            progress=lambda done, _: tell(done, CELLS),
        )
    jump = tuned.activation if tuned.activation.jump else tuned.largest.activation
    cells = [
        cell for activation in (None, SReLU(100.0), jump) for cell in _cells(scene, activation)
    ]
    with Store(store, wait=wait) as opened:
        fill(
            cells,
            opened,
            executor=executor,
            keep=KEPT,
            progress=lambda done, total: tell(values + done, total),
        )
        mine = plan(cells, opened, keep=KEPT).cells
        found = lines(opened, keys=mine, images=True)
    found.sort(key=lambda line: list(mine).index(line.key))
    with one_thread():
        audits = _audits(scene, jump, lambda done: tell(values + len(cells) + done, len(cells)))
    notes = [f"Tuned on {tuned.data}: {tuned}. Shown here: {show(jump)}.", *_findings(found)]
    notes += [f"Audit of {what}: {made}." for what, made in audits]
    curve = plots.tuning(tuned.points, tuned.knob, jump.kappa)
    caption = f"Tuning on {tuned.data}, {tuned.threat}; the bar marks the value shown below."
    told = [(what, made.numbers()) for what, made in audits]
    text = html.page(
        found,
        title=f"retroact demo: {scene.net}",
        notes=notes,
        figures=[(caption, curve)],
        audits=told,
    )
    return found, notes, write(text, page)


def _audits(scene: Scene, jump: Any, tell: Callable[[float], None]) -> list[tuple[str, Audit]]:
    """Both retrofits and the hardened network, each beside the plain one on the test split."""
    net, threat = load(scene.net), Linf(scene.eps)
    part = AUDITS / 4
    hardened = harden(
        net,
        read(scene.train),
        threat,
        keep=scene.keep,
        held=read(scene.validation),
        progress=lambda done, total: tell(part * done / total),
    )
    changed = {show(a): retrofit(net, a) for a in (SReLU(100.0), jump)} | {
        f"hardened ({hardened})": hardened.net
    }
    audits = []
    for i, (what, defended) in enumerate(changed.items(), start=1):
        audits.append((what, audit(net, defended, read(scene.test), threat, battery="quick")))
        tell(part * (i + 1))
    return audits


def _cells(scene: Scene, activation: Any) -> list[Cell]:
    model, threat = Model(scene.net, activation), Linf(scene.eps)
    cells = [Cell(model, scene.test, attack, threat) for attack in (CLAIMED, ON_MARGIN)]
    if activation is not None:
        cells.append(
            Cell(model, scene.test, PGD(steps=40, loss="margin"), threat, source=Model(scene.net))
        )
        if activation.jump:
            beta = SHARPNESS / activation.kappa
            cells.append(Cell(model, scene.test, ON_MARGIN, threat, beta=beta))
    return cells


def _findings(found: list[Line]) -> list[str]:
    """One sentence per network: what the papers' attack claims, and what stands under all
    attacks."""
    names = list(dict.fromkeys(line.network for line in found))
    own = {name: [line for line in found if line.network == name] for name in names}
    verified = {
        name: float(worst_case([line.record for line in own[name]]).mean()) for name in names
    }
    claimed = {name: _claimed(own[name]) for name in names}
    twin = names[0]
    return [
        f"{name}: {claimed[name]:.1%} under cross-entropy PGD"
        f" ({100 * (claimed[name] - claimed[twin]):+.1f} points claimed), {verified[name]:.1%}"
        f" under all attacks ({100 * (verified[name] - verified[twin]):+.1f} verified)."
        for name in names[1:]
    ]


def _claimed(mine: list[Line]) -> float:
    line = next(
        line for line in mine if line.fields.attack == show(CLAIMED) and line.fields.source is None
    )
    return robust_accuracy(line.record)
