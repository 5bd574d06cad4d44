"""Each attack beside its peers: CPU seconds in alternation, strength, passes, and the bare passes
needed.

    python bench/attacks.py --net lenet-mnist --n 200 --rounds 5

Prints a markdown table. In each round ours and every peer attack the same images once, one after
the other, in one process on one thread; a ratio is the median over rounds of (peer's CPU seconds /
ours), so that what else happens on the machine meets all. Peers get the images as one batch, as a
call of theirs takes them; ours go through `craft` with its own chunks, on the form of the network
that is proved: the proof itself falls into the first round, which is not counted (about a hundred
gradients of an image, once for a network and its images). Strength comes first: `robust` is the
accuracy left within eps (budget attacks), `norm` the mean perturbation over the images that all of
them fool (minimum-norm attacks), judged by one function. `passes` is our mean number of gradients
per image; `of limit` is our time over that of as many bare passes (forward, and backward to the
input; for an attack on scores its queries, forward only) of that form. A ratio counts where our
robust or norm is no larger.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import retroact as ra
from retroact.crafting.attack import Attack
from retroact.crafting.driver import Outcome, craft
from retroact.evaluation.proof import prove_for

Run = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One attack of ours, the threat it runs under, and the peers that do the same."""

    title: str
    ours: Attack
    threat: Any
    peers: dict[str, Run] = field(default_factory=dict)


@dataclass
class Measured:
    """What one runner did over all rounds."""

    x_adv: Tensor
    seconds: list[float] = field(default_factory=list)


def main() -> None:
    args = _arguments()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = ra.load(args.net)
    data = ra.data(f"{args.data or _data_of(args.net)}[:{args.n}]")
    eps = args.eps or (0.3 if "mnist" in args.net else 8 / 255)
    print(
        f"`{args.net}`, {data.name}, n = {len(data)}, {args.rounds} rounds, torch"
        f" {torch.__version__}\n"
    )
    print(
        "| attack | images per CPU s | robust % or mean norm | passes | of limit | peer: ratio, its"
        " strength |"
    )
    print("|---|---|---|---|---|---|")
    for row in _rows(eps):
        if not args.only or args.only in row.title:
            print(_line(row, net, data, args.rounds), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--net", default="lenet-mnist")
    parser.add_argument("--data", default="", help="data set (default: the network's own)")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--eps", type=float, default=0.0, help="radius in pixels of the budget attacks"
    )
    parser.add_argument("--only", default="", help="attacks whose title contains this")
    return parser.parse_args()


def _data_of(net: str) -> str:
    return next(name for name in ("mnist", "cifar10", "digits") if name in net)


# ------------------------------------------------------------------------------------------- rows


def _rows(eps: float) -> Iterator[Row]:
    linf, wide, whole = ra.Linf(eps), ra.L2(50.0), ra.Linf(1.0)
    yield Row(
        "FGSM",
        ra.FGSM(),
        linf,
        {
            "foolbox": _foolbox("LinfFastGradientAttack", eps),
            "torchattacks": _torch("FGSM", eps=eps),
        },
    )
    for steps in (40, 10):
        share = 1 / 30 if steps == 40 else 0.25
        peers = {
            "foolbox": _foolbox(
                "LinfProjectedGradientDescentAttack", eps, steps=steps, rel_stepsize=share
            ),
            "torchattacks": _torch("PGD", eps=eps, alpha=share * eps, steps=steps),
        }
        pgd = ra.PGD(steps=steps, relative_step=share)
        yield Row(f"PGD-{steps}", pgd, linf, peers | {"ours on a bf16 copy": _in_bf16(pgd, linf)})
    yield Row("APGD-CE-50", ra.APGD(steps=50), linf, {"pyautoattack": _apgd("ce", eps)})
    yield Row(
        "APGD-DLR-50", ra.APGD(steps=50, loss="dlr"), linf, {"pyautoattack": _apgd("dlr", eps)}
    )
    for radius in (6.0, 10.0) if eps == 0.3 else (12.0,):
        peers = {"pyautoattack": _apgd("ce", radius, "L1")}
        yield Row(f"APGD-CE-100 L1 {radius:g}", ra.APGD(steps=100), ra.L1(radius), peers)
    yield Row(
        "Square-500",
        ra.Square(queries=500),
        linf,
        {"torchattacks": _torch("Square", eps=eps, n_queries=500)},
    )
    for norm, threat in (("L2", wide), ("Linf", whole)):
        name = f"{norm}DeepFoolAttack"
        peers = {"foolbox": _foolbox(name), "foolbox, 3 candidates": _foolbox(name, candidates=3)}
        yield Row(f"DeepFool {norm}", ra.DeepFool(), threat, peers)
    options = {"steps": 25, "binary_search_steps": 6}
    yield Row(
        "Carlini-Wagner L2",
        ra.CarliniWagner(),
        wide,
        {"foolbox": _foolbox("L2CarliniWagnerAttack", **options)},
    )
    yield Row("DDN-100 L2", ra.DDN(steps=100), wide, {"foolbox": _foolbox("DDNAttack", steps=100)})
    for norm, threat in (("L2", wide), ("LInf", whole)):
        yield Row(
            f"FMN-100 {norm}",
            ra.FMN(steps=100),
            threat,
            {"foolbox": _foolbox(f"{norm}FMNAttack", steps=100)},
        )
    for norm, threat in (("L2", wide), ("Linf", whole)):
        yield Row(f"Trust region {norm}", ra.TrustRegion(), threat)


def _in_bf16(attack: Attack, threat: Any) -> Run:
    """The attack on a copy in bfloat16; what it makes is judged on the network itself, as
    everybody's is."""

    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return craft(
            attack, copy.deepcopy(net).bfloat16(), x, y, torch.arange(len(x)), threat
        ).x_adv

    return run


def _foolbox(name: str, eps: float | None = None, **options: Any) -> Run:
    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import foolbox

        model = foolbox.PyTorchModel(net, bounds=(0, 1))
        _, found, _ = getattr(foolbox.attacks, name)(**options)(model, x, y, epsilons=eps)
        return found

    return run


def _torch(name: str, **options: Any) -> Run:
    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import torchattacks

        return getattr(torchattacks, name)(net, **options)(x, y)

    return run


def _apgd(loss: str, eps: float, norm: str = "Linf") -> Run:
    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from pyautoattack.autopgd_base import APGDAttack

        attack = APGDAttack(
            net,
            n_iter=50 if norm == "Linf" else 100,
            norm=norm,
            eps=eps,
            loss=loss,
            n_restarts=1,
            device="cpu",
            verbose=False,
        )
        return attack.perturb(x, y)

    return run


# -------------------------------------------------------------------------------------- measuring


def _line(row: Row, net: nn.Module, data: Any, rounds: int) -> str:
    x, y = data.images, data.labels

    def ours_on(net: nn.Module) -> Outcome:
        form = prove_for(row.ours, net, x, data.index, [row.threat]).lean
        return craft(row.ours, form, x, y, data.index, row.threat)

    made = ours_on(net)
    runs: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours_on(net).x_adv,
        **{name: lambda peer=peer: peer(net, x, y) for name, peer in row.peers.items()},
    }
    # the first round warms up and is not counted
    found = {name: Measured(run()) for name, run in runs.items()}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.process_time()
            run()
            found[name].seconds.append(time.process_time() - began)
    strength = _norms if row.ours.kind == "minimum-norm" else _robust
    strong = strength(row, net, x, y, {name: m.x_adv for name, m in found.items()})
    ours = statistics.median(found["ours"].seconds)
    passes = float(made.gradients.float().mean())
    cheap = prove_for(row.ours, net, x, data.index, [row.threat]).lean
    queries = float(made.queries.float().mean())
    limit = ours / (
        len(x) * (passes * _bare(cheap, x) if passes else queries * _bare(cheap, x, backward=False))
    )
    ratios = {
        name: statistics.median(
            p / o for p, o in zip(found[name].seconds, found["ours"].seconds, strict=True)
        )
        for name in row.peers
    }
    peers = [f"{name}: {ratio:.2f}x, {strong[name]}" for name, ratio in ratios.items()]
    return (
        f"| {row.title} | {len(x) / ours:.0f} | {strong['ours']} | {passes:.1f} of"
        f" {row.ours.passes} | {limit:.2f} | {'; '.join(peers) or '–'} |"
    )


def _robust(
    row: Row, net: nn.Module, x: Tensor, y: Tensor, found: dict[str, Tensor]
) -> dict[str, str]:
    """Accuracy in percent that is left within eps; an image outside the ball or the box does not
    count as fooled."""
    right = _decisions(net, x) == y
    stands = {}
    for name, x_adv in found.items():
        legal = (
            row.threat(x_adv, x)
            & (x_adv >= -1e-6).flatten(1).all(1)
            & (x_adv <= 1 + 1e-6).flatten(1).all(1)
        )
        stands[name] = right & ~(legal & (_decisions(net, x_adv) != y))
    return {name: f"{100 * float(s.float().mean()):.1f}" for name, s in stands.items()}


def _norms(
    row: Row, net: nn.Module, x: Tensor, y: Tensor, found: dict[str, Tensor]
) -> dict[str, str]:
    """Mean and median norm over the images that every attack fools, and how many of all attackable
    each fools."""
    right = _decisions(net, x) == y
    fooled = {name: right & (_decisions(net, x_adv) != y) for name, x_adv in found.items()}
    common = torch.stack(list(fooled.values())).all(0)
    said = {}
    for name, x_adv in found.items():
        norms = row.threat.size(x_adv - x)[common]
        count = f"{int(fooled[name].sum())} of {int(right.sum())}"
        said[name] = f"{float(norms.mean()):.4f} (median {float(norms.median()):.4f}, {count})"
    return said


@torch.no_grad()
def _decisions(net: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([net(part).argmax(1) for part in x.split(64)])


def _bare(net: nn.Module, x: Tensor, passes: int = 20, *, backward: bool = True) -> float:
    """CPU seconds per image of a forward (and a backward pass to the input), in chunks of 64."""
    part = x[:64].clone().requires_grad_(backward)
    seconds = []
    for _ in range(passes):
        began = time.process_time()
        out = net(part)
        if backward:
            torch.autograd.grad(out.sum(), part)
        seconds.append(time.process_time() - began)
    return statistics.median(seconds) / len(part)


if __name__ == "__main__":
    main()
