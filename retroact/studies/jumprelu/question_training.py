"""Question: mixed batches or full ones, a kappa in training, a jump's zeros, and what JPEG costs

The paper trains on batches of which 30 % are FGSM images, calls the result a little less robust
than Madry's and more accurate when clean, and never trains with kappa above 0. Here LeNet-like
networks from one seed, each with the paper's optimiser and a short one-cycle schedule, differ in
the share of adversarial images or in the kappa they train with. (From scratch at kappa 0.5 such a
network learns nothing: its first activations are all below the jump.) Last, what the images cost
that the zoo's networks for CIFAR-10 were trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import nn

from retroact.activations.piecewise import JumpReLU
from retroact.attacks.apgd import APGD
from retroact.attacks.erichson import ErichsonPGD
from retroact.auditing.battery import VERSION
from retroact.crafting.threat import Linf
from retroact.evaluation.evaluate import evaluate
from retroact.evaluation.metrics import clean_accuracy, robust_accuracy
from retroact.experiments.cell import Model
from retroact.nets.data import data
from retroact.nets.zoo import NETWORKS
from retroact.parts import HasParts
from retroact.reports.plots import Panel, Series, panels
from retroact.reports.studied import Claim, Figure, Part, Table, Text
from retroact.retrofitting.installed import installed
from retroact.retrofitting.surgery import retrofit
from retroact.spec import AtLeast0, Count, Positive, UnitInterval, spec
from retroact.studies.desk import Desk, Facts
from retroact.studies.jumprelu.reencoded import compare_pixels
from retroact.studies.truth import answer_claim, audited_facts, numbers, verdict
from retroact.training.fit import fit
from retroact.training.recipes import MixedFGSM, Standard

RATIOS = (0.0, 0.3, 0.6, 1.0)
KAPPAS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
EPS = 0.1


@spec
class MixedLeNet:
    """A LeNet-like network trained with `ratio` FGSM images in each batch: clean accuracy, under
    the paper's PGD, and under APGD on the margin loss at `eps` (the first 1000)."""

    ratio: UnitInterval
    train: str
    data: str
    epochs: Count = 10
    eps: Positive = EPS
    seed: int = 0

    def __call__(self) -> Facts:
        net = _train(_initialise(self.seed), self.ratio, self.train, self.epochs, self.seed)
        examples = data(self.data)
        record = evaluate(net, examples, ErichsonPGD(), Linf(1.0))
        strong = evaluate(net, examples[:1000], APGD(loss="margin"), Linf(self.eps))
        return {
            "clean": clean_accuracy(record),
            "pgd": robust_accuracy(record),
            "verified": robust_accuracy(strong),
        }


@spec
class TrainedWithKappa:
    """A LeNet-like network trained with JumpReLU(kappa) in its place, audited beside the same
    training with ReLU."""

    kappa: AtLeast0
    train: str
    data: str
    epochs: Count = 10
    eps: Positive = EPS
    seed: int = 0
    version: ClassVar[int] = VERSION
    resumes: ClassVar[bool] = True

    def __call__(self, store: HasParts | None = None) -> Facts:
        plain = _train(_initialise(self.seed), 0.0, self.train, self.epochs, self.seed)
        jumped = retrofit(_initialise(self.seed), JumpReLU(self.kappa))
        trained = _train(jumped, 0.0, self.train, self.epochs, self.seed)
        return audited_facts(plain, trained, self.data, Linf(self.eps), store=store)


@spec
class Zeros:
    """The share of zeros that leaves each activation."""

    model: Model
    data: str

    def __call__(self) -> Facts:
        net = self.model()
        zeros: dict[str, float] = {}

        def counted(name: str) -> Any:
            return lambda module, given, output: zeros.__setitem__(
                name, float((output == 0).double().mean())
            )

        hooks = [site.register_forward_hook(counted(name)) for name, site in installed(net).items()]
        with torch.no_grad():
            net(data(self.data).images)
        for hook in hooks:
            hook.remove()
        return zeros


def make(desk: Desk) -> Iterator[Part]:
    yield from _compare_ratios(desk)
    yield from _train_with_kappa(desk)
    yield from _show_sparsity(desk)
    yield from compare_pixels(desk)


def _compare_ratios(desk: Desk) -> Iterator[Part]:
    asked = [MixedLeNet(r, *_slices(desk), epochs=desk.pick(3, 10)) for r in RATIOS]
    facts = dict(zip(RATIOS, desk.all_facts(asked), strict=True))
    yield Table(
        f"LeNet-like by the share of FGSM images in a batch: accuracy (%), {asked[0].epochs}"
        f" epochs, {asked[0].train}",
        ("share", "clean", "the paper's PGD", f"APGD, margin, at {EPS:g}"),
        tuple(
            (f"{r:g}", *(100 * facts[r][k] for k in ("clean", "pgd", "verified"))) for r in RATIOS
        ),
        digits=2,
    )
    mixed, full = facts[0.3], facts[1.0]
    clean, pgd, truly = (100 * (mixed[k] - full[k]) for k in ("clean", "pgd", "verified"))
    because = (
        f"30 % beside all: clean {clean:+.2f}, the paper's PGD {pgd:+.2f}, APGD {truly:+.2f}"
        " points; single-step images, not Madry's many steps, in both"
    )
    yield Claim("mixed_batches", answer_claim(clean > 0 >= pgd, truly <= 0), because)


def _train_with_kappa(desk: Desk) -> Iterator[Part]:
    train, _ = _slices(desk)
    part = f"mnist[:{desk.pick(100, 500)}]"
    asked = TrainedWithKappa(0.25, train, part, epochs=desk.pick(3, 10))
    audited = numbers(desk, asked)
    accuracies = {
        "clean": audited.clean,
        "claimed": audited.claimed,
        "verified": audited.verified,
    }
    yield Table(
        f"Trained with kappa {asked.kappa:g}, beside the same training with ReLU: accuracy (%),"
        f" Linf({EPS:g})",
        ("", "ReLU", f"kappa {asked.kappa:g}"),
        tuple((what, *(100 * v for v in pair)) for what, pair in accuracies.items()),
    )
    said = f"**{verdict(audited)}** (n = {audited.n}, p = {audited.p:.2g})"
    yield Text(
        "The audit of the network that was trained with a jump, beside the one trained without:"
        f" {said}."
    )


def _show_sparsity(desk: Desk) -> Iterator[Part]:
    part = f"mnist[:{desk.pick(200, 1000)}]"
    shares = [desk.facts(Zeros(Model("lenet-mnist", JumpReLU(k)), part)) for k in KAPPAS]
    names = list(shares[0])
    yield Figure(
        "Sparsity: the share of zeros (%) after each activation of lenet-mnist against kappa.",
        panels(
            [
                Panel(
                    "lenet-mnist",
                    [
                        Series(n, KAPPAS, [100 * f[n] for f in shares], colour=i)
                        for i, n in enumerate(names)
                    ],
                    "kappa",
                    "zeros, %",
                )
            ]
        ),
    )
    rows = tuple(
        (f"{k:g}", *(100 * f[n] for n in names)) for k, f in zip(KAPPAS, shares, strict=True)
    )
    yield Table("Share of zeros (%)", ("kappa", *names), rows, folded=True)


def _slices(desk: Desk) -> tuple[str, str]:
    return f"mnist/train[:{desk.pick(6000, 50000)}]", f"mnist[:{desk.pick(300, 10000)}]"


def _initialise(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS["lenet-mnist"]()


def _train(net: nn.Module, ratio: float, train: str, epochs: int, seed: int) -> nn.Module:
    plan = Standard(epochs=epochs, lr=0.1, channels_last=True)
    return fit(net, data(train), MixedFGSM(plan, ratio=ratio), seed=seed)
