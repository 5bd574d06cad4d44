"""Each attack beside its peers: CPU seconds in alternation, strength, passes, and the bare passes
needed.

    python bench/attacks.py --net lenet-mnist --n 16 64 200 --json rows.jsonl
    python bench/attacks.py --net lenet-mnist --n 1 16 64 --evaluate --json rows.jsonl
    python bench/attacks.py --net resnet20-cifar10 --n 1000 --device cuda --json there.jsonl
    python bench/attacks.py --table rows.jsonl

Prints markdown tables. `--json` keeps the raw rows, a line each, and does not measure anew what
stands there; `--table` prints what stands there. In each round ours and every peer that is
installed (`bench/peers.py`) attack the same images once, one after the other, in one process on one
thread; a ratio is the median over rounds of (peer's CPU seconds / ours), so that what else happens
on the machine meets all. A row has one round or more: no further one begins once it has taken
`--seconds`.

Ours go through `craft` with its own chunks, on the form of the network that is proved; the proof
(about a hundred gradients of an image, once for a network) comes before the rounds. Peers get a
copy of the network whose weights are frozen, which spares some of them gradients that no attack
needs, and the images in one batch, as a call of theirs takes them, and in chunks of 64 where that
is something else. All have attacked two images before. With `--device` networks and images lie
there, seconds are those of the wall, read once the device is done, and a bare pass has all images.

Strength comes first, judged by one function: the accuracy in percent that is left within eps
(budget attacks), or the mean perturbation over the images that ours and the peer both fool
(minimum-norm attacks), with the number fooled where it is not all. `best peer` is the fastest of
those that are as strong as ours, by `SLACK`; where none is, the strongest. `stronger` names those
that are stronger than ours by more than that. `passes` is our mean number of gradients per image
(of what was given), for an attack on scores its queries; `of limit` is our time over that of as
many bare passes of the form that ours runs on: forward for each query, and back to the input for
each gradient.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peers import Peer, adversarial_library, art, foolbox, in_chunks, pyautoattack, torchattacks
from torch import Tensor, nn

import retroact as ra
from retroact.crafting.attack import Attack
from retroact.crafting.driver import Outcome, craft
from retroact.evaluation.proof import prove_for

CHUNK = 64
"""Images of a chunk of a peer, and of a bare pass."""
SLACK = 0.01
"""As strong as ours: as many images fooled but for this share of all (at least one), at a mean norm
no more than this much larger."""
INF = float("inf")


@dataclass(frozen=True)
class Row:
    """One attack of ours, the threat it runs under, and the peers that do the same."""

    title: str
    ours: Attack
    threat: Any
    peers: tuple[Peer, ...] = ()


@dataclass(frozen=True)
class Case:
    """A network, what it is called, its images, and the radius of budget attacks."""

    name: str
    net: nn.Module
    data: Any
    eps: float
    device: str = "cpu"

    @property
    def there(self) -> tuple[Tensor, Tensor]:
        """Images and labels on the device, where peers want them."""
        return self.data.images.to(self.device), self.data.labels.to(self.device)

    @property
    def frozen(self) -> nn.Module:
        """A copy whose weights ask for no gradients."""
        return copy.deepcopy(self.net).requires_grad_(False)


def main() -> None:
    args = arguments()
    if args.table:
        _print_tables(_read(args.table))
        return
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = []
    for n in args.n:
        case = _case(args.net, args.data, n, args.eps, args.device)
        wanted = (_evaluations if args.evaluate else attacks_on)(case, args)
        rows += [measured_once(case, title, measure, args.json) for title, measure in wanted]
    _print_tables(rows)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the words of a command say; without any, those of this one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--net", default="lenet-mnist", help="of the zoo, or a name of bench/random_nets.py"
    )
    parser.add_argument("--data", default="", help="data set (default: the network's own)")
    parser.add_argument("--n", type=int, nargs="+", default=[200])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="at most so many")
    parser.add_argument("--seconds", type=float, default=30.0, help="CPU seconds of a row, about")
    parser.add_argument("--eps", type=float, default=0.0, help="radius of the budget attacks")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="attacks with a word that begins so"
    )
    parser.add_argument("--without", nargs="+", default=[], help="packages to leave out")
    parser.add_argument("--evaluate", action="store_true", help="times `evaluate` instead")
    parser.add_argument(
        "--slow", action="store_true", help="peers that go image by image, too (use a small n)"
    )
    parser.add_argument("--bf16", action="store_true", help="PGD on a copy in bfloat16, too")
    parser.add_argument("--json", type=Path, help="raw rows, kept from run to run")
    parser.add_argument("--table", type=Path, help="prints the tables of such a file, and ends")
    return parser.parse_args(words)


def _case(name: str, data: str, n: int, eps: float, device: str) -> Case:
    if data or any(known in name for known in ("mnist", "cifar10", "digits")):
        images = ra.data(f"{data or _data_of(name)}[:{n}]")
        net, radius = ra.load(name), eps or (0.3 if "mnist" in name else 8 / 255)
    else:
        from random_nets import made  # needs timm

        (net, images), radius = made(name, n), eps or 8 / 255
    return Case(name, net.to(device), images, radius, device)


def _data_of(net: str) -> str:
    return next(name for name in ("mnist", "cifar10", "digits") if name in net)


# ------------------------------------------------------------------------------------------- rows


def _rows(eps: float) -> Iterator[Row]:
    yield from _of_one_step_or_more(eps)
    yield from _of_apgd(eps)
    peers = (
        torchattacks("Square", eps=eps, n_queries=500),
        art("SquareAttack", eps=eps, max_iter=500, verbose=False),
    )
    yield Row("Square-500", ra.Square(queries=500), ra.Linf(eps), peers)
    for order, threat in ((2, ra.L2(50.0)), (INF, ra.Linf(1.0))):
        yield from _of_smallest(order, threat, 0.3 if eps > 0.1 else 0.01)


def _of_one_step_or_more(eps: float) -> Iterator[Row]:
    linf = ra.Linf(eps)
    peers = (
        foolbox("LinfFastGradientAttack", eps),
        torchattacks("FGSM", eps=eps),
        art("FastGradientMethod", eps=eps),
    )
    yield Row("FGSM", ra.FGSM(), linf, peers)
    for steps, share in ((40, 1 / 30), (10, 0.25)):
        pgd = ra.PGD(steps=steps, relative_step=share)
        alone = {"eps_step": share * eps, "max_iter": steps, "num_random_init": 1, "verbose": False}
        peers = (
            foolbox("LinfProjectedGradientDescentAttack", eps, steps=steps, rel_stepsize=share),
            torchattacks("PGD", eps=eps, alpha=share * eps, steps=steps),
            adversarial_library("pgd_linf", ε=eps, steps=steps, relative_step_size=share),
            art("ProjectedGradientDescentPyTorch", eps=eps, **alone),
            Peer("retroact", "ours on a bf16 copy", _in_bf16(pgd, linf)),
        )
        yield Row(f"PGD-{steps}", pgd, linf, peers)


def _of_apgd(eps: float) -> Iterator[Row]:
    linf = ra.Linf(eps)
    for loss, long in (("ce", "cross_entropy"), ("dlr", "difference_logits_ratio")):
        alone = {"eps_step": 2 * eps, "max_iter": 50, "nb_random_init": 1, "verbose": False}
        peers = (
            pyautoattack(eps, "Linf", n_iter=50, loss=loss),
            torchattacks("APGD", eps=eps, steps=50, loss=loss),
            adversarial_library("apgd", eps=eps, norm=INF, n_iter=50, loss_function=loss),
            art("AutoProjectedGradientDescent", eps=eps, loss_type=long, **alone),
        )
        ours = ra.APGD(steps=50, loss="dlr" if loss == "dlr" else "cross_entropy")
        yield Row(f"APGD-{loss.upper()}-50", ours, linf, peers)
    for radius in (6.0, 10.0) if eps == 0.3 else (12.0,):
        peers = (
            pyautoattack(radius, "L1", n_iter=100, loss="ce"),
            adversarial_library("apgd", eps=radius, norm=1, n_iter=100, loss_function="ce"),
        )
        yield Row(f"APGD-CE-100 L1 {radius:g}", ra.APGD(steps=100), ra.L1(radius), peers)


def _of_smallest(order: float, threat: Any, rate: float) -> Iterator[Row]:
    name, whole = ("L2", 2) if order == 2 else ("Linf", INF)
    fool = f"{name}DeepFoolAttack"
    peers = [foolbox(fool), foolbox(fool, note="3 candidates", candidates=3)]
    peers += [adversarial_library("df", norm=whole)]
    slow = [torchattacks("DeepFool"), art("DeepFool", verbose=False)] if order == 2 else []
    yield Row(f"DeepFool {name}", ra.DeepFool(), threat, (*peers, *map(_slow, slow)))
    if order == 2:
        yield Row("Carlini-Wagner L2", ra.CarliniWagner(), threat, tuple(_of_carlini(rate)))
        peers = [foolbox("DDNAttack", steps=100), adversarial_library("ddn", steps=100)]
        yield Row("DDN-100 L2", ra.DDN(steps=100), threat, tuple(peers))
    peers = [foolbox(f"{'L2' if order == 2 else 'LInf'}FMNAttack", steps=100)]
    peers += [adversarial_library("fmn", norm=whole, steps=100)]
    yield Row(f"FMN-100 {name}", ra.FMN(steps=100), threat, tuple(peers))
    peers = [adversarial_library("tr", p=whole, adaptive=True, iter=1000)]
    yield Row(f"Trust region {name}", ra.TrustRegion(), threat, tuple(peers))


def _of_carlini(rate: float) -> Iterator[Peer]:
    """As many gradients as ours takes, under settings that fool all: from an initial constant of 1,
    since a short search from their own ends before it has begun, at a step that crosses what there
    is to cross."""
    same = {"binary_search_steps": 3, "initial_const": 1.0}
    yield foolbox("L2CarliniWagnerAttack", steps=50, stepsize=rate, **same)
    more = {"max_iterations": 50, "learning_rate": rate}
    yield adversarial_library("carlini_wagner_l2", **more, **same)
    yield _slow(art("CarliniL2Method", max_iter=50, learning_rate=rate, verbose=False, **same))


def _slow(peer: Peer) -> Peer:
    return Peer(peer.package, f"{peer.name}, image by image", peer.run)


def _in_bf16(attack: Attack, threat: Any) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """The attack on a copy in bfloat16; what it makes is judged on the network itself, as
    everybody's is."""

    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        low = copy.deepcopy(net).bfloat16()
        return craft(attack, low, x, y, torch.arange(len(x)), threat).x_adv

    return run


# -------------------------------------------------------------------------------------- measuring

Raw = dict[str, Any]


def measured_once(case: Case, title: str, measure: Callable[[], Raw], file: Path | None) -> Raw:
    """The row as it stands in the file, or measured and written there."""
    key = {"net": case.name, "n": len(case.data), "eps": case.eps, "attack": title}
    key |= {"device": case.device}
    for row in _read(file) if file and file.exists() else ():
        if {name: row.get(name, "cpu") for name in key} == key:
            return row
    torch.manual_seed(0)
    row = key | {"data": case.data.name, "torch": torch.__version__} | measure()
    print(_told(row), flush=True)
    if file:
        with file.open("a") as out:
            out.write(json.dumps(row) + "\n")
    return row


def _read(file: Path) -> list[Raw]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def attacks_on(case: Case, args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Raw]]]:
    """The attacks that are asked for, each with what measures it beside its peers."""
    for row in _rows(case.eps):
        if any(re.search(rf"\b{re.escape(word)}", row.title) for word in args.only):
            yield row.title, lambda row=row: _attack(case, row, args)


def _attack(case: Case, row: Row, args: argparse.Namespace) -> Raw:
    net, x, y, index = case.net, case.data.images, case.data.labels, case.data.index

    def ours(rows: slice = slice(None)) -> Outcome:
        form = prove_for(row.ours, net, x, index, [row.threat]).lean
        return craft(row.ours, form, x[rows], y[rows], index[rows], row.threat)

    ours(slice(2))
    frozen, there, failed = case.frozen, case.there, {}
    peers = [p for p in _wanted(row, len(x), args) if _runs(p, frozen, there, failed)]
    runs: dict[str, Callable[[], Any]] = {"ours": ours}
    runs |= {p.name: lambda p=p: p.run(frozen, *there) for p in peers}
    found, seconds = _alternate(runs, args.rounds, args.seconds, case.device)
    made = found["ours"]
    found["ours"] = made.x_adv
    passes, queries = (float(n.float().mean()) for n in (made.gradients, made.queries))
    cheap = prove_for(row.ours, net, x, index, [row.threat]).lean
    return {
        "versions": {p.package: p.version for p in peers if p.package != "retroact"},
        "failed": failed,
        "smallest": row.ours.kind == "minimum-norm",
        "passes": passes,
        "queries": queries,
        "of": row.ours.passes,
        "limit": len(x) * _needed(cheap, there[0], queries, passes),
        "seconds": seconds,
        "sizes": {
            name: _sizes(row.threat, net, x, y, x_adv.cpu()) for name, x_adv in found.items()
        },
    }


def absent_from(eps: float) -> list[str]:
    """The peers' packages that are not installed."""
    peers = (peer for row in _rows(eps) for peer in row.peers if not peer.installed)
    return sorted({peer.package for peer in peers})


def _wanted(row: Row, n: int, args: argparse.Namespace) -> Iterator[Peer]:
    """Those of a row that are installed and asked for, and in chunks where that is something
    else."""
    for peer in row.peers:
        asked = args.slow or not peer.name.endswith("image by image")
        asked &= args.bf16 or peer.package != "retroact"
        asked &= peer.package not in args.without
        if asked and peer.installed:
            yield peer
            if n > CHUNK and peer.package != "retroact":
                yield in_chunks(peer, CHUNK)


def _clock(device: str) -> float:
    """CPU seconds so far; of another device the wall's, once it has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.process_time() if device == "cpu" else time.perf_counter()


def _runs(peer: Peer, net: nn.Module, there: tuple[Tensor, Tensor], failed: dict[str, str]) -> bool:
    """Whether a peer attacks two images; what it raises is noted and said, and the row goes on."""
    try:
        peer.run(net, there[0][:2], there[1][:2])
    except Exception as error:
        failed[peer.name] = f"{type(error).__name__}: {error}"
        print(f"{peer.name} is left out: {failed[peer.name]}", flush=True)
        return False
    return True


def _alternate(
    runs: dict[str, Callable[[], Any]], rounds: int, seconds: float, device: str
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What each run gives, and its seconds in each round."""
    found, spent = {}, {name: [] for name in runs}
    while len(spent["ours"]) < rounds and sum(map(sum, spent.values())) < seconds:
        for name, run in runs.items():
            began = _clock(device)
            found[name] = run()
            spent[name].append(_clock(device) - began)
    return found, spent


def _sizes(threat: Any, net: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> list[float | None]:
    """The size of the perturbation of each image that the network gets right, None where it still
    does, or where the example lies outside the ball or the box."""
    right = _decisions(net, x) == y
    boxed = ((x_adv >= -1e-6) & (x_adv <= 1 + 1e-6)).flatten(1).all(1)
    fooled = (_decisions(net, x_adv) != y) & boxed & threat(x_adv, x)
    sizes = threat.size(x_adv - x)
    return [float(sizes[i]) if fooled[i] else None for i in right.nonzero()[:, 0]]


@torch.no_grad()
def _decisions(net: nn.Module, x: Tensor) -> Tensor:
    on = next(net.parameters()).device
    return torch.cat([net(part.to(on)).argmax(1).cpu() for part in x.split(CHUNK)])


def _needed(net: nn.Module, x: Tensor, queries: float, gradients: float) -> float:
    """Seconds per image of so many bare passes, on a CPU in chunks of 64: forward for each query,
    back to the input for each gradient."""
    device = str(x.device)
    part = (x[:CHUNK] if device == "cpu" else x).clone()
    forward = _bare(lambda: net(part.requires_grad_(False)), device)
    both = _bare(lambda: _pass(net, part), device) if gradients else forward
    return (queries * forward + gradients * (both - forward)) / len(part)


def _bare(run: Callable[[], Tensor], device: str, passes: int = 20) -> float:
    """The median of so many passes, or of what a second holds."""
    seconds: list[float] = []
    while len(seconds) < passes and (len(seconds) < 3 or sum(seconds) < 1.0):
        began = _clock(device)
        run()
        seconds.append(_clock(device) - began)
    return statistics.median(seconds)


def _pass(net: nn.Module, x: Tensor) -> Tensor:
    part = x.clone().requires_grad_()
    return torch.autograd.grad(net(part).sum(), part)[0]


# ------------------------------------------------------------------------------------- evaluations


def _evaluations(case: Case, args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Raw]]]:
    yield "evaluate FGSM", lambda: _evaluation(case, args)


def _evaluation(case: Case, args: argparse.Namespace) -> Raw:
    """CPU seconds of `evaluate` and its parts: the first of a network, with its proof, and those
    that follow."""
    net, data, threat, fgsm = case.net, case.data, ra.Linf(case.eps), ra.FGSM()
    x, y, frozen, there = data.images, data.labels, case.frozen, case.there
    peer = torchattacks("FGSM", eps=case.eps)
    fresh = [copy.deepcopy(net) for _ in range(args.rounds + 1)]

    def crafted() -> Tensor:
        form = prove_for(fgsm, net, x, data.index, [threat]).lean
        return craft(fgsm, form, x, y, data.index, threat).x_adv

    runs: dict[str, Callable[[], Any]] = {
        "first": lambda: ra.evaluate(fresh.pop(), data, fgsm, threat),
        "bare": lambda: _pass(net, there[0]),
        "ours": crafted,
        "evaluate": lambda: ra.evaluate(net, data, fgsm, threat),
    }
    if peer.installed:
        runs["torchattacks"] = lambda: peer.run(frozen, *there)
    _alternate(runs, 1, INF, case.device)
    return {"seconds": _alternate(runs, args.rounds, args.seconds, case.device)[1]}


# ------------------------------------------------------------------------------------------ tables


@dataclass(frozen=True)
class Beside:
    """A peer beside ours, in one row."""

    name: str
    ratio: float
    standing: int
    mean: float
    our_mean: float

    @staticmethod
    def of(row: Raw, name: str) -> Beside:
        """As a raw row has it; means are over what both fool."""
        ours, theirs = row["sizes"]["ours"], row["sizes"][name]
        both = [(o, t) for o, t in zip(ours, theirs, strict=True) if None not in (o, t)]
        our_mean, mean = map(statistics.fmean, zip(*both, strict=True)) if both else (1.0, INF)
        ratio = _ratio(row, name)
        return Beside(name, ratio, theirs.count(None), mean, our_mean)

    def gap(self, row: Raw) -> tuple[float, float]:
        """By how much it is weaker than ours, as a share: of all images, and of the norm."""
        more = self.standing - row["sizes"]["ours"].count(None)
        longer = self.mean / self.our_mean - 1 if row["smallest"] else 0.0
        return more / max(row["n"], 1 / SLACK), longer


def _ratio(row: Raw, name: str) -> float:
    pairs = zip(row["seconds"][name], row["seconds"]["ours"], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def _peers(row: Raw) -> list[Beside]:
    names = [name for name in row["sizes"] if not name.startswith("ours")]
    return [Beside.of(row, name) for name in names]


def _best(row: Raw, peers: Sequence[Beside]) -> Beside | None:
    """The fastest of those as strong as ours; where none is, the strongest."""
    strong = [p for p in peers if max(p.gap(row)) <= SLACK]
    if strong:
        return min(strong, key=lambda p: p.ratio)
    return min(peers, key=lambda p: p.gap(row), default=None)


def _stronger(row: Raw, peers: Sequence[Beside]) -> list[Beside]:
    return [p for p in peers if _is_stronger(p.gap(row))]


def _is_stronger(gap: tuple[float, float]) -> bool:
    more, longer = gap
    return more < -SLACK or (more <= 0 and longer < -SLACK)


def _print_tables(rows: Sequence[Raw]) -> None:
    versions = {k: v for row in rows for k, v in row.get("versions", {}).items()}
    versions["torch"] = rows[0]["torch"]
    print("\n" + ", ".join(f"{name} {version}" for name, version in versions.items()))
    attacks = [row for row in rows if "sizes" in row]
    for name in dict.fromkeys(row["net"] for row in attacks):
        _print_attacks(name, [row for row in attacks if row["net"] == name])
    timed = [row for row in rows if "sizes" not in row]
    if timed:
        print(f"\n### `evaluate`, FGSM\n\n{_EVALUATE}")
        print("\n".join(_evaluate_line(row) for row in timed))


_ATTACKS = (
    "| attack | n | ms an image | best peer | ratio | strength: ours, its | passes | of limit |"
    " stronger |\n|---|---|---|---|---|---|---|---|---|"
)
_EVALUATE = (
    "| network | n | bare pass | crafting | `evaluate` | the first | torchattacks' crafting |\n"
    "|---|---|---|---|---|---|---|"
)


def _print_attacks(name: str, rows: list[Raw]) -> None:
    data = rows[0]["data"].partition("[")[0]
    print(f"\n### `{name}` on {data}, eps {_in_pixels(rows[0]['eps'])}\n\n{_ATTACKS}")
    titles = list(dict.fromkeys(row["attack"] for row in sorted(rows, key=_place)))
    for row in sorted(rows, key=lambda r: (titles.index(r["attack"]), r["n"])):
        print(_line(row))


def _place(row: Raw) -> int:
    """Of an attack among all, in whatever order they were measured."""
    return [r.title for r in _rows(row["eps"])].index(row["attack"])


def _in_pixels(eps: float) -> str:
    return f"{255 * eps:.3g}/255" if eps < 0.1 else f"{eps:g}"


def _line(row: Raw) -> str:
    peers = _peers(row)
    best, seconds = _best(row, peers), statistics.median(row["seconds"]["ours"])
    cells = [row["attack"], row["n"], f"{1000 * seconds / row['n']:.3g}"]
    if best is None:
        cells += ["–", "–", _own_strength(row)]
    else:
        cells += [best.name, f"{best.ratio:.2f}", _strengths(row, best)]
    cells += [f"{row['passes'] or row['queries']:.1f} of {row['of']}"]
    cells += [f"{seconds / row['limit']:.2f}"]
    cells += ["; ".join(_told_peer(row, p) for p in _stronger(row, peers))]
    return f"| {' | '.join(map(str, cells))} |"


def _strengths(row: Raw, peer: Beside) -> str:
    sizes = row["sizes"]["ours"]
    if not row["smallest"]:
        return f"{_left(row, sizes.count(None))}, {_left(row, peer.standing)}"
    means = f"{peer.our_mean:.4f}, {peer.mean:.4f}"
    fooled = [len(sizes) - standing for standing in (sizes.count(None), peer.standing)]
    return means if min(fooled) == len(sizes) else f"{means} ({fooled[0]}, {fooled[1]} fooled)"


def _own_strength(row: Raw) -> str:
    sizes = row["sizes"]["ours"]
    if not row["smallest"]:
        return _left(row, sizes.count(None))
    return f"{statistics.fmean(s for s in sizes if s is not None):.4f}"


def _left(row: Raw, standing: int) -> str:
    return f"{100 * standing / row['n']:.1f}"


def _told_peer(row: Raw, peer: Beside) -> str:
    return f"{peer.name} {peer.ratio:.2f}x, {_strengths(row, peer)}"


def _told(row: Raw) -> str:
    """A row with all of its peers, while they are measured."""
    if "sizes" not in row:
        return _evaluate_line(row)
    every = [Beside.of(row, name) for name in row["sizes"] if name != "ours"]
    return f"{_line(row)}\n    {'; '.join(_told_peer(row, p) for p in every)}"


def _evaluate_line(row: Raw) -> str:
    names = ("bare", "ours", "evaluate", "first", "torchattacks")
    ms = {name: 1000 * statistics.median(s) for name, s in row["seconds"].items()}
    cells = [f"{ms[name]:.3g}" if name in ms else "–" for name in names]
    return f"| {row['net']} | {row['n']} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
