"""The audit's indicators on networks that the audit is never reported on: what they fire on, and
what they miss.

    python bench/calibrate.py --out build/calibration

Trains small networks (kept as safetensors under `--out`, so that a second run only reads them),
standard and with FGSM images, and lets every indicator look at pairs whose answer is known.
*Negatives* mask nothing: the network itself, SReLU(1), random shifts of its ReLUs, a few more steps
of training, adversarial training. *Positives* do: steep slopes and loud logits (saturation),
JumpReLU (jump), and for the indicators of one network the changes of
`retroact/auditing/mechanisms`. All points are held out from training, and none is test data. Prints
a markdown table with one line per indicator: what it shows, its false alarms and misses at the
present threshold, and between which thresholds there are fewest of both; and one that says which
indicators of one network fire on how many of each group of changes.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import retroact as ra
from retroact.auditing.indicators import FirstLook, Indicator, indicators
from retroact.auditing.mechanisms import activations, backward, inputs, outputs, scale
from retroact.auditing.mechanisms.mechanism import Given, Mechanism
from retroact.auditing.selftest import Louder
from retroact.crafting.derived import TraceError, trace_forward
from retroact.crafting.inner import end_inside, watch_inside
from retroact.crafting.threat import ThreatModel
from retroact.evaluation.proof import leave_as_is
from retroact.nets.zoo import NETWORKS
from retroact.retrofitting.installed import installed
from retroact.training.fit import fit
from retroact.training.recipes import MixedFGSM, Recipe, Standard

POINTS = 200
CLEAN = 0.8  # a jump that leaves less is no retrofit that anybody would claim
SLOPES = (2.0, 5.0, 10.0, 100.0)
KAPPAS = (0.3, 0.5, 1.0)


@dataclass(frozen=True)
class Family:
    """Networks of one architecture: how it is built and trained, its data, the seeds, and the eps
    it is looked at."""

    name: str
    build: Callable[[], nn.Module]
    train: str
    held: str
    plan: Standard
    eps: tuple[float, ...]
    seeds: tuple[int, ...] = (1,)


class Skipping(nn.Module):
    """conv 1→12 | norm | A | (conv 12→12 | norm | A | conv 12→12 | norm) + skip | A | mean over 4x4
    | fc 10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 12, 5, stride=2), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv3, self.norm3 = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12 * 9, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.conv3(y)) + x)
        out: Tensor = self.fc(F.avg_pool2d(x, 4).flatten(1))
        return out


def _mlp() -> nn.Module:
    hidden = nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 10)
    return ra.Classifier(nn.Sequential(nn.Flatten(), *hidden), shape=(1, 28, 28))


def _mnist(name: str, build: Callable[[], nn.Module], plan: Standard) -> Family:
    return Family(name, build, "mnist/train[:20000]", "mnist/validation[:400]", plan, (0.1,))


FAMILIES = (
    Family(
        "digits-cnn",
        NETWORKS["digits-cnn"],
        "digits/train[:1000]",
        "digits/train[1000:]",
        Standard(epochs=20, lr=0.1, batch=64),
        (0.1,),
        (1, 2, 3),
    ),
    _mnist("mnist-cnn", NETWORKS["mnist-cnn"], Standard(epochs=2, lr=0.05, batch=64)),
    _mnist("mlp", _mlp, Standard(epochs=2, lr=0.1, batch=64)),
    _mnist(
        "skipping",
        lambda: ra.Classifier(Skipping(), shape=(1, 28, 28)),
        Standard(epochs=2, lr=0.1, batch=64),
    ),
)
ROBUST_EPS = 0.1

GROUPS: dict[str, tuple[Mechanism, ...]] = {
    "the whole backward pass": backward.IN_FRONT,
    "pixels detached": backward.PIXELS,
    "channels detached": backward.CHANNELS,
    "right on the grid or far from the boundary alone": backward.PLACES,
    "a backward pass of ReLU's own": activations.OWN_BACKWARD,
    "jumps and staircases by hand": (
        *activations.JUMPS,
        activations.STAIRCASE,
        activations.STEEP,
    ),
    "high frequencies": activations.WAVES,
    "images rounded": inputs.ROUNDED,
    "activations rounded": activations.ROUNDED,
    "logits rounded": tuple(m for m in outputs.CHANGED if "decimals" in m.name),
    "one-hot answers": outputs.HARD,
    "logits resized": scale.RESCALED,
}
"""Changes of the network of one seed by which the indicators of one network are tried."""

MEANT = {
    "gradient fidelity": ("jump", "jumps and staircases by hand"),
    "no gradient": ("images rounded", "activations rounded", "logits rounded", "one-hot answers"),
    "gradient mismatch": (
        "the whole backward pass",
        "pixels detached",
        "channels detached",
        "right on the grid or far from the boundary alone",
        "a backward pass of ReLU's own",
    ),
    "random directions": ("jumps and staircases by hand", "high frequencies", "pixels detached"),
    "single entries": ("pixels detached",),
    "equal logits": ("activations rounded", "logits rounded", "one-hot answers"),
    "misled margin": ("logits resized",),
}
"""What each of them is for."""


@dataclass(frozen=True)
class Seen:
    """What one indicator showed on one pair of networks: `value` is above (or times) that of the
    network before, or, for an indicator of one network, that of the one after alone."""

    net: str
    eps: float
    change: str
    kind: str  # "none", a mechanism, or one of the `GROUPS`
    indicator: str
    value: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/calibration"), help="where the networks are kept"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the looks' random starts")
    parser.add_argument(
        "--alone", action="store_true", help="the indicators of one network only: a third the time"
    )
    parser.add_argument(
        "--first", action="store_true", help="the first seed of each architecture only"
    )
    parser.add_argument("--each", action="store_true", help="print every value, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    asked = [ask for ask in indicators() if ask.absolute or not args.alone]
    families = [replace(f, seeds=f.seeds[: 1 if args.first else None]) for f in FAMILIES]
    seen = [one for family in families for one in _looks(family, args.out, args.seed, asked)]
    if args.each:
        for one in seen:
            print(
                f"{one.indicator} | {one.kind} | {one.net} | {one.eps} | {one.change} |"
                f" {one.value:.4g}"
            )
    print(*_table(seen), sep="\n")
    pairs = {(one.net, one.eps, one.change, one.kind) for one in seen}
    kinds = {kind: sum(k == kind for *_, k in pairs) for kind in ("none", *_KINDS, *GROUPS)}
    print(
        f"\n{len(pairs)} pairs: {kinds}; n = {POINTS} points, {time.process_time() - began:.0f} s"
        " of CPU"
    )


# ------------------------------------------------------------------------------------- the networks


def _trained(
    family: Family, seed: int, out: Path, recipe: Recipe, name: str, start: nn.Module | None
) -> nn.Module:
    """The network of that name from `out`, or trained now: from `start`, or from scratch."""
    torch.manual_seed(seed)
    net, path = family.build(), out / f"{name}.safetensors"
    if path.is_file():
        net.load_state_dict(load_file(path))
        return net.eval()
    if start is not None:
        net.load_state_dict(start.state_dict())
    fit(net, ra.data(family.train), recipe, seed=seed)
    save_file(net.state_dict(), path)
    return net


def _family(family: Family, seed: int, out: Path) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The network, the same trained with FGSM images, and the first one trained a little longer."""
    name, tail = (
        f"{family.name}-{seed}",
        Standard(epochs=1, lr=family.plan.lr / 10, batch=family.plan.batch),
    )
    net = _trained(family, seed, out, family.plan, name, None)
    hardy = MixedFGSM(family.plan, ratio=0.5, eps=ROBUST_EPS)
    robust = _trained(family, seed, out, hardy, f"{name}-robust", None)
    return net, robust, _trained(family, seed + 100, out, tail, f"{name}-tuned", net)


# ---------------------------------------------------------------------------------------- the looks


def _looks(family: Family, out: Path, seed: int, asked: list[Indicator]) -> Iterator[Seen]:
    held = ra.data(family.held)
    for number in family.seeds:
        net, robust, tuned = _family(family, number, out)
        name = f"{family.name}-{number}"
        others: dict[str, tuple[nn.Module, str]] = {
            "tuned": (tuned, "none"),
            "robust": (robust, "none"),
        }
        for title, twin, more in ((name, net, others), (f"{name}-robust", robust, {})):
            print(
                f"# {title}: {_right(twin, held).float().mean():.1%} of {len(held)} right",
                flush=True,
            )
            changes = {**more, **dict(_changes(twin, held, out / f"{title}-shifts.safetensors"))}
            for eps in family.eps:
                yield from _pairs(title, twin, changes, held, ra.Linf(eps), seed, asked)
        yield from _strange(name, net, ra.data(family.train), held, ra.Linf(family.eps[0]), seed)


def _changes(
    net: nn.Module, held: ra.Images, file: Path
) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """Retrofits of a network, each with what it masks its gradients by."""
    yield "itself", (net, "none")
    yield "SReLU(1)", (ra.retrofit(net, ra.SReLU(1.0)), "none")
    yield "shifts", (_shifted(net, held, file), "none")
    yield "logits times 2^14", (Louder(net), "saturation")
    for alpha in SLOPES:
        yield f"SReLU({alpha:g})", (ra.retrofit(net, ra.SReLU(alpha)), "saturation")
    for kappa in KAPPAS:
        jump = ra.retrofit(net, ra.JumpReLU(kappa))
        if float(_right(jump, held).float().mean()) > CLEAN:
            yield f"JumpReLU({kappa:g})", (jump, "jump")


def _strange(
    name: str,
    net: nn.Module,
    train: ra.Images,
    held: ra.Images,
    threat: ThreatModel,
    seed: int,
) -> Iterator[Seen]:
    """What the indicators of one network show on mechanisms around it."""
    assert isinstance(net, ra.Classifier)
    given, base = Given(net, (net, net), train, float(threat.eps)), _right(net, held)
    for group, members in GROUPS.items():
        if not isinstance(net.module, nn.Sequential) and group not in _AROUND:
            continue  # what is within is written down anew, layer by layer
        for mechanism in members:
            changed = mechanism.build(given).net
            right = _right(changed, held)
            if float(right.float().mean()) <= CLEAN:
                continue
            part = held.select((base & right).nonzero()[:POINTS, 0])
            look = _look(changed, part, threat, seed)
            for ask in indicators():
                if ask.absolute:
                    value = ask(look, look).value
                    yield Seen(name, float(threat.eps), mechanism.name, group, ask.title, value)


_AROUND = (
    "the whole backward pass",
    "pixels detached",
    "images rounded",
    "logits rounded",
    "one-hot answers",
    "logits resized",
)
"""Groups whose changes stand around a network."""


def _look(net: nn.Module, part: ra.Images, threat: ThreatModel, seed: int) -> FirstLook:
    how = part.images, part.labels, part.index, threat, seed
    first = part.images[:64]
    try:
        traced = trace_forward(net, part.images)
    except TraceError:
        return FirstLook(leave_as_is(net), *how, inner=watch_inside(net, first))
    inner = end_inside(traced, first)
    return FirstLook(leave_as_is(net), *how, traced=traced, inner=inner)


def _shifted(net: nn.Module, held: ra.Images, file: Path) -> nn.Module:
    """Normal shifts, one per channel of every ReLU, with a standard deviation of 0.1."""
    widths: dict[str, int] = {}
    work = ra.retrofit(net, ra.ReLU())
    for name, site in installed(work).items():
        site.register_forward_hook(
            lambda m, args, out, name=name: widths.__setitem__(name, args[0].shape[1])
        )
    with torch.no_grad():
        work(held.images[:2])
    generator = torch.Generator().manual_seed(0)
    shifts = {name: 0.1 * torch.randn(width, generator=generator) for name, width in widths.items()}
    return ra.retrofit(net, ra.write_shifts(file, shifts))


def _pairs(
    name: str,
    twin: nn.Module,
    changes: dict[str, tuple[nn.Module, str]],
    held: ra.Images,
    threat: ThreatModel,
    seed: int,
    asked: list[Indicator],
) -> Iterator[Seen]:
    base = _right(twin, held)
    for change, (net, kind) in changes.items():
        rows = (base & _right(net, held)).nonzero()[:POINTS, 0]
        part = held.select(rows)
        now = _look(net, part, threat, seed)
        alone = all(ask.absolute for ask in asked)
        before = now if alone else _look(twin, part, threat, seed)
        for ask in asked:
            reading = ask(now, before)
            value = reading.value - (0.0 if ask.absolute else reading.before)
            value = reading.value / reading.before if ask.ratio else value
            yield Seen(name, float(threat.eps), change, kind, ask.title, value)


def _right(net: nn.Module, held: ra.Images) -> Tensor:
    with torch.no_grad():
        return torch.cat([net(x).argmax(1) for x in held.images.split(200)]) == held.labels


# ---------------------------------------------------------------------------------------- the table


def _table(seen: list[Seen]) -> Iterator[str]:
    yield (
        "| indicator | threshold | negatives: largest | false alarms | on the other mechanism "
        "| positives: least, median | misses | fewest errors | between |"
    )
    yield "|" + "---|" * 9
    for ask in indicators():
        if any(s.indicator == ask.title for s in seen):
            yield _line(ask, seen)
    told = {s.indicator for s in seen}
    for kind in _KINDS:
        fired = {a.title: a for a in indicators() if a.mechanism == kind and a.title in told}
        if not fired:
            continue
        caught = {
            (s.net, s.eps, s.change, s.kind): False for s in seen if s.kind in ("none", kind)
        }  # whether any fired
        for s in seen:
            if (
                s.indicator in fired
                and s.value > fired[s.indicator].threshold
                and s.kind in ("none", kind)
            ):
                caught[s.net, s.eps, s.change, s.kind] = True
        alarms = [c for c, hit in caught.items() if hit and c[3] == "none"]
        missed = [c for c, hit in caught.items() if not hit and c[3] == kind]
        yield f"\nany of {kind}: false alarms {alarms or 'none'}; missed {missed or 'none'}"
    yield from _groups(seen)


def _line(ask: Indicator, seen: list[Seen]) -> str:
    """One indicator: an absolute one beside what it is meant for, the others beside their
    mechanism."""
    meant = MEANT[ask.title] if ask.absolute else (ask.mechanism,)
    values = [(s.kind, s.value) for s in seen if s.indicator == ask.title]
    own, none = [v for k, v in values if k in meant], [v for k, v in values if k == "none"]
    others = [k for k in _KINDS if k != ask.mechanism and not (ask.absolute and k == "jump")]
    other = [v for k, v in values if k in others]
    low, high, errors = _best(none, own)
    return (
        f"| {ask.title} | {ask.threshold:g} | {max(none):.3g} | {_above(none, ask)} of"
        f" {len(none)} | {_above(other, ask)} of {len(other)} | {min(own):.3g},"
        f" {sorted(own)[len(own) // 2]:.3g} | {len(own) - _above(own, ask)} of {len(own)} |"
        f" {errors} | {low:.3g} to {high:.3g} |"
    )


def _groups(seen: list[Seen]) -> Iterator[str]:
    """On how many of each group every indicator of one network fires, and on how many any does."""
    asked = [ask for ask in indicators() if ask.absolute]
    yield "\n| change | networks | " + " | ".join(ask.title for ask in asked) + " | any |"
    yield "|" + "---|" * (len(asked) + 3)
    for group in ("none", *_KINDS, *GROUPS):
        nets = {(s.net, s.change): set[str]() for s in seen if s.kind == group}
        for ask in asked:
            for s in seen:
                if (s.kind, s.indicator) == (group, ask.title) and s.value > ask.threshold:
                    nets[s.net, s.change].add(ask.title)
        counts = [sum(ask.title in hits for hits in nets.values()) for ask in asked]
        told = " | ".join(map(str, (*counts, sum(map(bool, nets.values())))))
        yield f"| {group} | {len(nets)} | {told} |"
        silent = sorted({change for (_, change), hits in nets.items() if not hits})
        if silent and group in GROUPS:
            yield f"<!-- silent on {', '.join(silent)} -->"


_KINDS = ("saturation", "jump")


def _above(values: list[float], ask: Indicator) -> int:
    return sum(v > ask.threshold for v in values)


def _best(negatives: list[float], positives: list[float]) -> tuple[float, float, int]:
    """The thresholds between which false alarms and misses are fewest, and how many those are.

    Negatives weigh as much as positives: among equals, the range with fewer false alarms.
    """
    cuts = sorted({*negatives, *positives})
    ranges = [(a, b) for a, b in zip(cuts, [*cuts[1:], math.inf], strict=True)]

    def errors(cut: float) -> tuple[int, int]:
        alarms = sum(v > cut for v in negatives)
        return alarms + sum(v <= cut for v in positives), alarms

    low, high = min(ranges, key=lambda r: errors(r[0]))
    return low, high, errors(low)[0]


if __name__ == "__main__":
    main()
