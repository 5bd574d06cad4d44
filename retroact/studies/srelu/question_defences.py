"""Question: the slope in conjunction with other defences, trained in, and as a raised bias

"The proposed defense can be used in conjunction with other defenses": the slope is put on an
adversarially trained network, on one that was hardened by learned shifts, and on JumpReLU, and each
pair is audited against the same network without the slope. "Training and testing with the same
slope (greater than one) did not improve the robustness": one MNIST CNN is trained at slope 2.
"Elevating the bias of neurons … may lead to similar observations": a constant is added to every
pre-activation, and beside it stands what `harden` learns, one shift per channel.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn import functional

from retroact.activations.activation import Activation
from retroact.activations.channel_shift import ChannelShift
from retroact.activations.files import embed
from retroact.activations.piecewise import JumpReLU, Piecewise, SReLU
from retroact.activations.ramp import FinitePositive, Ramp
from retroact.activations.shifted import ShiftedReLU
from retroact.activations.site import Site
from retroact.attacks.fgsm import FGSM
from retroact.auditing.battery import VERSION
from retroact.auditing.numbers import AuditNumbers
from retroact.auditing.verdict import MARGIN
from retroact.crafting.losses import Loss
from retroact.crafting.threat import Linf, ThreatModel
from retroact.evaluation.evaluate import evaluate_all
from retroact.evaluation.metrics import clean_accuracy, robust_accuracy
from retroact.experiments.cell import Model
from retroact.experiments.facts import Measurement
from retroact.nets.data import data
from retroact.nets.zoo import NETWORKS
from retroact.parts import HasParts
from retroact.reports.studied import Claim, Part, Table, Takeaway, Text
from retroact.retrofitting.folding import fold
from retroact.retrofitting.installed import installed
from retroact.retrofitting.surgery import refit, retrofit
from retroact.spec import AtLeast0, Count, Positive, spec
from retroact.studies.desk import Desk, Facts
from retroact.studies.srelu import CHUNK
from retroact.studies.srelu.attacks import make_attack
from retroact.studies.truth import Audited, BatteryName, answer_claim, audited_facts, audits
from retroact.training.fit import fit
from retroact.training.hardening import Hardening, harden
from retroact.training.recipes import Standard

ALPHA = 10.0
LENET, THREAT = "lenet-mnist", Linf(0.1)
EPS = (0.1, 0.2, 0.3)
ALONE = "LeNet, nothing else"


def make(desk: Desk) -> Iterator[Part]:
    images, battery = f"mnist{desk.pick('[:80]', '[:500]')}", _battery(desk)
    yield audits(
        desk,
        f"The slope {ALPHA:g} on top of another defence: that defence → with the slope",
        _pairs(desk),
    )
    outcomes = {name: _again(desk, what) for name, what in _pairs(desk)}
    yield Text(_describe_pairs(list(outcomes.values())))
    others = {k: v for k, v in outcomes.items() if k != ALONE}
    yield _in_conjunction(others)
    yield _say_added(others)
    yield from _same_slope(desk)
    yield from _biases(desk, images, battery)


def _battery(desk: Desk) -> BatteryName:
    return "quick" if desk.quick else "whole"


# ------------------------------------------------------------------------- with other defences


@spec
class SlopedJump(Piecewise):
    """alpha · z · 1[z > kappa]: a Sloped ReLU on top of a JumpReLU."""

    alpha: FinitePositive = 1.0
    kappa: AtLeast0 = 0.0
    cap: Positive = math.inf

    @property
    def ramp(self) -> Ramp:
        return Ramp(self.alpha, self.kappa, self.cap)

    @property
    def neutral(self) -> SlopedJump:
        return replace(self, alpha=1.0, kappa=0.0)

    def at(self, site: Site) -> SlopedJump:
        return replace(self, cap=min(self.cap, site.cap))

    def __call__(self, z: Tensor) -> Tensor:
        jumped = self.alpha * functional.threshold(z, self.kappa, 0.0)
        return jumped if self.cap == math.inf else functional.hardtanh(jumped, 0.0, self.cap)


@spec
class HardenedAudit:
    """An audit of `model` hardened by learned shifts ("shifts": plain → hardened), or of the slope
    on top of it ("slope": hardened → hardened with slope `alpha`); beside it how many of the shifts
    point up."""

    model: Model
    part: Literal["shifts", "slope"]
    data: str
    train: str
    threat: ThreatModel
    alpha: FinitePositive = ALPHA
    steps: Count = 150
    batch: Count = 200
    battery: BatteryName = "whole"
    seed: int = 0
    version: ClassVar[int] = VERSION
    resumes: ClassVar[bool] = True

    def __call__(self, store: HasParts | None = None) -> Facts:
        plain, (hard, shifts) = self.model(), _harden(self)
        folded = fold(hard)
        pair = (
            (plain, hard) if self.part == "shifts" else (folded, refit(folded, SReLU(self.alpha)))
        )
        how: dict[str, Any] = {"battery": self.battery, "seed": self.seed, "store": store}
        facts = audited_facts(*pair, self.data, self.threat, **how)
        return facts | {"upward": float((shifts > 0).float().mean()), "mean": float(shifts.mean())}


def _harden(what: HardenedAudit) -> tuple[nn.Module, Tensor]:
    how = (what.steps, what.batch, what.seed)
    return _learn(what.model, what.train, what.threat, *how)  # type: ignore[arg-type]


@lru_cache(maxsize=2)
def _learn(
    model: Model, train: str, threat: ThreatModel, steps: int, batch: int, seed: int
) -> tuple[nn.Module, Tensor]:
    """The hardened net and all of its shifts in one row."""
    hardened = harden(
        model(), data(train), threat, Hardening("shifts", steps, batch), seed=seed
    ).net
    each = [
        m.activation.shift
        for m in installed(hardened).values()
        if isinstance(m.activation, ChannelShift)
    ]
    return hardened, torch.cat(each)


def _pairs(desk: Desk) -> list[tuple[str, Any]]:
    images, battery = f"mnist{desk.pick('[:80]', '[:500]')}", _battery(desk)

    def pair(net: str, without: Activation | None, sloped: Activation | None) -> Audited:
        return Audited(Model(net, without), Model(net, sloped), images, THREAT, battery)

    slope = SReLU(ALPHA)
    return [
        (ALONE, pair(LENET, None, slope)),
        ("LeNet, adversarially trained", pair(f"{LENET}-robust", None, slope)),
        ("LeNet, hardened by shifts", _shift_audit(desk, "slope")),
        ("LeNet with JumpReLU(1.0)", pair(LENET, JumpReLU(1.0), SlopedJump(ALPHA, 1.0))),
    ]


def _shift_audit(desk: Desk, part: Literal["shifts", "slope"]) -> HardenedAudit:
    images, train, steps, batch = desk.pick(
        ("mnist[:80]", "mnist/train[:4000]", 50, 100), ("mnist[:500]", "mnist/train", 150, 200)
    )
    return HardenedAudit(
        Model(LENET), part, images, train, THREAT, steps=steps, batch=batch, battery=_battery(desk)
    )


def _describe_pairs(outcomes: list[AuditNumbers]) -> str:
    """What the slope adds to other defences, by the intervals of the verified difference."""
    above, below = (
        sum(a.interval[0] > 0 for a in outcomes),
        sum(a.interval[1] < 0 for a in outcomes),
    )
    claimed = sum(a.claimed.after > a.claimed.before for a in outcomes)
    added = "no row" if not above else f"{above} of {len(outcomes)} rows"
    return (
        f"The slope raises the claimed number in {claimed} of {len(outcomes)} rows; it adds to what"
        f" withstands every attack in {added}, by the 95 % interval, and takes from it in {below}."
    )


def _in_conjunction(outcomes: Mapping[str, AuditNumbers]) -> Claim:
    """Can be used with others: on every other defence the claimed number rises; truly: what
    withstands every attack does too, by its 95 % interval."""
    claimed = {k: a.claimed.after - a.claimed.before for k, a in outcomes.items()}
    told = "; ".join(
        f"{k} {100 * claimed[k]:+.1f}, verified {100 * a.gain:+.1f}"
        f" ({100 * a.interval[0]:+.1f} to {100 * a.interval[1]:+.1f})"
        for k, a in outcomes.items()
    )
    return Claim(
        "other_defences",
        answer_claim(min(claimed.values()) > 0, min(a.interval[0] for a in outcomes.values()) > 0),
        f"what slope {ALPHA:g} adds to another defence, points claimed by PGD and verified: {told}",
    )


def _say_added(outcomes: Mapping[str, AuditNumbers]) -> Takeaway:
    """What the slope adds to other defences, in a line."""
    told = "; ".join(
        f"{name} {100 * (a.claimed.after - a.claimed.before):+.1f} ({100 * a.gain:+.1f})"
        for name, a in outcomes.items()
    )
    return Takeaway(
        8,
        f"Slope {ALPHA:g} on top of another defence, points of accuracy under PGD, and in brackets"
        f" of what withstands every attack: {told}.",
    )


# --------------------------------------------------------------------- trained with the same slope


@spec
class Trained:
    """The MNIST CNN trained at slope `trained` and tested at slope `tested`: accuracies (%) at each
    eps."""

    trained: float
    tested: float
    train: str
    data: str
    epochs: Count = 2
    lr: FinitePositive = 0.05
    seed: int = 0

    def __call__(self) -> Facts:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            fresh = NETWORKS["mnist-cnn"]()
        recipe = Standard(self.epochs, self.lr, 32, 0.5, 0.0, "constant")
        net = fit(retrofit(fresh, SReLU(self.trained)), data(self.train), recipe, seed=self.seed)
        net, test = refit(net, SReLU(self.tested)).eval(), data(self.data)
        records = evaluate_all(net, test, FGSM(), [Linf(e) for e in EPS], chunk=CHUNK)
        shares = {
            "clean": 100 * clean_accuracy(records[0]),
            "FGSM": [100 * robust_accuracy(r) for r in records],
        }
        losses: dict[str, Loss] = {"PGD": "cross_entropy", "PGD, margin": "margin"}
        for name, loss in losses.items():
            climbs = [(make_attack("PGD", e, loss), [Linf(e)]) for e in EPS]
            runs = [evaluate_all(net, test, *climb, chunk=CHUNK)[0] for climb in climbs]
            shares[name] = [100 * robust_accuracy(r) for r in runs]
        return shares


def _same_slope(desk: Desk) -> Iterator[Part]:
    train, images, epochs = desk.pick(
        ("mnist/train[:6000]", "mnist[:100]", 4), ("mnist/train", "mnist[:2000]", 8)
    )
    pairs = ((1.0, 1.0), (1.0, 2.0), (2.0, 2.0))
    shares = dict(
        zip(pairs, desk.all_facts([Trained(*p, train, images, epochs) for p in pairs]), strict=True)
    )
    attacks = ("FGSM", "PGD", "PGD, margin")
    yield Table(
        "MNIST CNN trained at one slope and tested at another: accuracy (%), mean over eps"
        f" {', '.join(map(str, EPS))}",
        ("trained at", "tested at", "clean", *attacks),
        tuple(
            (f"{a:g}", f"{b:g}", f["clean"], *(_mean(f[k]) for k in attacks))
            for (a, b), f in shares.items()
        ),
    )
    plain, same = shares[1.0, 1.0], shares[2.0, 2.0]
    gains = {
        k: 100 * (_mean(same[k]) / same["clean"] - _mean(plain[k]) / plain["clean"])
        for k in attacks
    }
    allowed = 100 * MARGIN
    seems, is_so = max(gains["FGSM"], gains["PGD"]) >= allowed, gains["PGD, margin"] >= allowed
    yield Claim(
        "same_slope_training",
        answer_claim(not seems, not is_so),
        "slope 2 in training and test against slope 1 in both, share of the rightly decided images"
        " that are robust, mean over eps, in points: "
        + ", ".join(f"{k} {v:+.1f}" for k, v in gains.items())
        + f"; an improvement would be {allowed:g} points or more; one training each"
        + (
            "; what seems an improvement on the cross-entropy is none on the margin"
            if seems and not is_so
            else ""
        ),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


# ------------------------------------------------------------------------------------ raised biases


@spec
class RaisedBias:
    """An audit of `model` with `shift` added to every pre-activation of every site."""

    model: Model
    shift: float
    data: str
    threat: ThreatModel
    battery: BatteryName = "whole"
    seed: int = 0
    version: ClassVar[int] = VERSION
    resumes: ClassVar[bool] = True

    def __call__(self, store: HasParts | None = None) -> Facts:
        plain = self.model()
        pair = plain, raise_biases(plain, self.shift)
        how: dict[str, Any] = {"battery": self.battery, "seed": self.seed, "store": store}
        return audited_facts(*pair, self.data, self.threat, **how)


def raise_biases(net: nn.Module, shift: float) -> nn.Module:
    """A copy of `net` whose activations see their input plus `shift`."""
    content = to_bytes({name: torch.full((n,), shift) for name, n in _channels(net).items()})
    name = hashlib.sha256(content).hexdigest()
    embed(content, sha256=name)
    return retrofit(net, ShiftedReLU("constant", name))


def _channels(net: nn.Module) -> dict[str, int]:
    """How many channels each site's pre-activation has."""
    widths: dict[str, int] = {}

    def look(name: str, args: Any) -> None:
        widths[name] = args[0].shape[1]

    plain, shape = retrofit(net, SReLU()), tuple(getattr(net, "shape", ()))
    for name, site in installed(plain).items():
        site.register_forward_pre_hook(lambda module, args, name=name: look(name, args))
    with torch.no_grad():
        plain(torch.zeros(1, *shape))
    return widths


def _biases(desk: Desk, images: str, battery: BatteryName) -> Iterator[Part]:
    shifts = desk.pick((0.1, 0.5), (-0.2, 0.05, 0.1, 0.2, 0.5, 1.0))
    asked: list[tuple[str, Any]] = [
        (f"{s:+g} everywhere", RaisedBias(Model(LENET), s, images, THREAT, battery)) for s in shifts
    ]
    learned = _shift_audit(desk, "shifts")
    asked.append(("learned, one per channel", learned))
    yield audits(desk, "Raised biases on LeNet: plain → shifted", asked)
    up = [(_again(desk, w).gain, s) for s, (_, w) in zip(shifts, asked[:-1], strict=True) if s > 0]
    shown = desk.again(learned)
    yield Text(_describe_biases(max(up), _again(desk, learned), shown["upward"], shown["mean"]))


def _again(desk: Desk, what: Measurement) -> AuditNumbers:
    return AuditNumbers.from_json(desk.again(what))


def _describe_biases(
    constant: tuple[float, float], learned: AuditNumbers, upward: float, mean: float
) -> str:
    gain, shift = constant
    clean = learned.clean.after - learned.clean.before
    return (
        "**“Elevating the bias of neurons”**, with which the paper ends its own explanation, is"
        " where learned shifts (`retroact harden`) come from. The best upward constant of these,"
        f" {shift:+g}, changes what withstands every attack by {100 * gain:+.1f} points; shifts"
        f" learned per channel change it by {100 * learned.gain:+.1f}, for"
        f" {100 * clean:+.1f} points of clean accuracy."
        f" {100 * upward:.0f} % of the learned shifts point up, their mean is"
        f" {mean:+.2f}: "
        + (
            "they lower biases more than they raise them."
            if mean < 0
            else "they do raise biases on the whole."
        )
    )
