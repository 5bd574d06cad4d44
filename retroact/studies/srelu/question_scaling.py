"""Question: is raising the slope the same as scaling the image, and why does it work?

The algebra in float64, where α^L up to 1e8 leaves eight digits; the attacks in float32 as
everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from retroact.activations.piecewise import SReLU
from retroact.attacks.corruptions import AdditiveUniformNoise
from retroact.attacks.fgsm import FGSM
from retroact.crafting.driver import chunks
from retroact.crafting.goals import Aim
from retroact.crafting.losses import cross_entropy
from retroact.crafting.oracle import Oracle, evaluating
from retroact.evaluation.evaluate import decide
from retroact.experiments.cell import Model
from retroact.nets.data import data
from retroact.reports.studied import Claim, Part, Table, Takeaway, Text, Value
from retroact.retrofitting.folding import fold
from retroact.retrofitting.installed import installed
from retroact.spec import spec
from retroact.studies.counted import counts
from retroact.studies.desk import Desk, Facts
from retroact.studies.srelu import CHUNK
from retroact.studies.srelu.attacks import images
from retroact.studies.srelu.networks import CNN1, MNIST, NETS, SLOPES, Net, label
from retroact.studies.srelu.scaled_pixels import ScaledPixels, StepOn
from retroact.studies.truth import answer_by_network, answer_claim

STEEP = (10.0, 100.0)
UNDER = {"noise": AdditiveUniformNoise(), "margin step": FGSM(loss="margin")}
NEAR_98, NEAR_60 = 1.0, 3.0
"""Percentage points that "around" allows."""
BETTER = 5.0
"""Percentage points that a better signal-to-noise ratio has to win, in noise or under an attack
that sees."""


Gradients = dict[tuple[Net, float], Facts]
"""Facts of `CleanGradients` by network and slope."""


@spec
class SlopeAlgebra:
    """How far the logits of a net whose activations are SReLU(α) are from three others, in float64
    on `data`.

    `folded`: from α^L times the ReLU net with biases b_k/α^(k−1). `bias_free`: both without biases,
    from the ReLU net on the image times α^L. `scaled`: with biases, from the ReLU net on the image
    times α^L; `same_decisions` of those two. Each is the largest |difference| over the largest
    |logit|. `negative`: the share of weights below 0.
    """

    model: Model
    data: str

    def __call__(self) -> Facts:
        sloped, plain = (
            copy.deepcopy(m()).double() for m in (self.model, replace(self.model, activation=None))
        )
        x, sites = data(self.data).images.double(), installed(sloped)
        assert isinstance(self.model.activation, SReLU)
        factor = self.model.activation.alpha ** len(sites)
        with evaluating(sloped, plain), torch.no_grad():
            ours, scaled = sloped(x), plain(factor * x)
            folded = factor * fold(sloped, scaled=False)(x)
            bare, bare_scaled = without_biases(sloped)(x), without_biases(plain)(factor * x)
        weights = torch.cat([p.flatten() for p in plain.parameters() if p.dim() > 1])
        return {
            "sites": len(sites),
            "negative": float((weights < 0).double().mean()),
            "folded": apart(ours, folded),
            "bias_free": apart(bare, bare_scaled),
            "scaled": apart(ours, scaled),
            "same_decisions": float((ours.argmax(1) == scaled.argmax(1)).double().mean()),
        }


@spec
class CleanGradients:
    """The gradient of the cross-entropy of the true class at clean images, apart for right and
    wrong decisions.

    `right` and `wrong` images; `zero32` and `zero64`, how many right ones have a gradient of
    exactly zero in each precision; `size_right` and `size_wrong`, the median of its largest entry
    in float64.
    """

    model: Model
    data: str

    def __call__(self) -> Facts:
        images = data(self.data)
        net = copy.deepcopy(self.model())
        right = decide(net, images.images) == images.labels
        zeros = {}
        for name, dtype in (("zero32", torch.float32), ("zero64", torch.float64)):
            sizes = largest_entries(net.to(dtype), images.images.to(dtype), images.labels)
            zeros[name] = int((sizes[right] == 0).sum())
        return {
            "right": int(right.sum()),
            "wrong": int((~right).sum()),
            **zeros,
            "size_right": float(sizes[right].median()),
            "size_wrong": float(sizes[~right].median()),
        }


def without_biases(net: nn.Module) -> nn.Module:
    """A copy with every bias set to zero."""
    bare = copy.deepcopy(net)
    with torch.no_grad():
        for name, values in bare.named_parameters():
            if name.endswith("bias"):
                values.zero_()
    return bare


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference over the largest entry."""
    return float((a - b).detach().abs().max() / a.detach().abs().max())


def largest_entries(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """max |∇CE| of each image, (n,)."""
    sizes = []
    with evaluating(net):
        for rows in chunks(len(x), CHUNK):
            aim, oracle = Aim(labels[rows]), Oracle(net, rows.stop - rows.start)
            _, gradient = oracle.gradient(
                x[rows], torch.arange(len(aim)), partial(cross_entropy, aim=aim)
            )
            sizes.append(gradient.flatten(1).abs().amax(1))
    return torch.cat(sizes)


def make(desk: Desk) -> Iterator[Part]:
    yield from _algebra(desk)
    yield from _scale_down(desk)
    yield from _mechanism(desk)
    yield from _clean(desk)


# ------------------------------------------------------------------------------------------ algebra


def _algebra(desk: Desk) -> Iterator[Part]:
    n = desk.pick(200, 1000)
    yield Text(
        "**Is raising the slope the same as scaling the image?** α max(0, s z) = α s max(0, z) for"
        " s > 0, so factors move through a ReLU net, whatever the signs of its weights. With L"
        " sloped activations in a row the logits are α^L times those of the ReLU net whose k-th"
        " bias is divided by α^(k−1). An image times s gives s times those of the ReLU net all of"
        " whose biases are divided by s, the first too. So without biases slope α and scale α^L"
        " are the same, and the paper's condition (a linear network with positive weights) is too"
        f" narrow; with biases they are not, and it is the biases that tell them apart. On {n} test"
        " images, in float64; differences are the largest one over the largest logit."
    )
    keys = [(net, s) for net in (MNIST, CNN1) for s in (2.0, *STEEP)]
    measured = desk.all_facts([SlopeAlgebra(net.sloped(s), net.slice(n)) for net, s in keys])
    head = (
        *("network", "slope α", "weights below 0", "α^L", "folding identity"),
        *("no biases: slope α, scale α^L", "with biases: the same", "same decisions"),
    )
    rows = [
        (
            *(
                net.title,
                label(s),
                f"{100 * f['negative']:.0f} %",
                f"{s ** f['sites']:g}",
                f"{f['folded']:.0e}",
            ),
            *(f"{f['bias_free']:.0e}", f"{f['scaled']:.2g}", f"{100 * f['same_decisions']:.1f} %"),
        )
        for (net, s), f in zip(keys, measured, strict=True)
    ]
    yield Table("Slope and scale: relative differences of logits", head, tuple(rows))


# ---------------------------------------------------------------------------- the scaled-down image


def _scale_down(desk: Desk) -> Iterator[Part]:
    n = images(desk, "FGSM")
    yield Text(
        "**Does submitting a scaled-down image counter the defence?** Two readings. *Submitted*:"
        " the network is given x/s, and attacked there with eps/s, the same share of the contrast;"
        " without biases and with s = α^L that is exactly FGSM on the network at slope 1. *Looked"
        " at*: the gradient is taken at x/s, the step eps is made on x itself and judged there."
        " “Fooled” is the share of images that are right before the step and wrong after it. The"
        " attack counters the defence where, for the best s of α, α², …, α^L, it fools at least"
        " half as many as on slope 1 and leaves at least half of the images right before the step."
        f" n = {n}, eps {MNIST.eps[-1]:g} (MNIST) and {CNN1.eps[-1]:g} (CIFAR-10)."
    )
    by_net = {
        (net, slope): _counters(desk, net, slope, n) for net in (MNIST, CNN1) for slope in STEEP
    }
    head = (
        "network",
        "slope",
        "image / s",
        "right before: submitted",
        "fooled",
        "right before: looked at",
        "fooled ",
    )
    rows: list[tuple[Value, ...]] = []
    for (net, slope), by_scale in by_net.items():
        unsloped = _count_fooled(desk, net, 1.0, 1.0, n, submitted=True)
        rows.append((net.title, "1", "–", *unsloped, *unsloped))
        rows += [
            (net.title, label(slope), label(s), *sub, *look) for s, (sub, look) in by_scale.items()
        ]
    yield Table("FGSM at a scaled-down image (%)", head, tuple(dict.fromkeys(rows)))
    yield _counter_claim(desk, by_net, n)


def _counters(
    desk: Desk, net: Net, slope: float, n: int
) -> dict[float, tuple[tuple[float, float], ...]]:
    """By s, the two readings: right before and fooled, in percent."""
    downs = [slope**k for k in range(1 + len(installed(net.sloped(slope)())))]
    return {
        s: tuple(_count_fooled(desk, net, slope, s, n, submitted=one) for one in (True, False))
        for s in downs
    }


def _count_fooled(
    desk: Desk, net: Net, slope: float, down: float, n: int, *, submitted: bool
) -> tuple[float, float]:
    eps = net.eps[-1]
    where: StepOn = "scaled" if submitted else "original"
    step = eps / down if submitted else eps
    asked = ScaledPixels(net.sloped(slope), net.slice(n), 1 / down, (step,), step_on=where)
    f = desk.facts(asked)
    return 100 * f["right"] / f["n"], 100 * (1 - f["left"][0] / max(1, f["right"]))


def _counter_claim(
    desk: Desk,
    by_net: dict[tuple[Net, float], dict[float, tuple[tuple[float, float], ...]]],
    n: int,
) -> Claim:
    """Counters: the best s fools half as many as at slope 1, at every steep slope; truly: judged at
    full size."""
    told, submitted, looked = [], [], []
    for (net, slope), by_scale in by_net.items():
        _, bare = _count_fooled(desk, net, 1.0, 1.0, n, submitted=True)
        kept = by_scale[1.0][0][0] / 2  # an image that is scaled beyond recognition is no attack
        sub, look = (
            max((f[i][1] for s, f in by_scale.items() if s > 1 and f[i][0] >= kept), default=0.0)
            for i in (0, 1)
        )
        submitted.append(sub >= bare / 2)
        looked.append(look >= bare / 2)
        direct = by_scale[1.0][0][1]
        told.append(
            f"{net.title} slope {label(slope)}: {direct:.0f} → {sub:.0f} and {look:.0f} of"
            f" {bare:.0f}"
        )
    because = (
        "fooled (%) directly → by the scaled-down image submitted and looked at, of slope 1's:"
        f" {'; '.join(told)}"
    )
    nets = list(dict.fromkeys(net for net, _ in by_net))
    met, truly = (
        [all(is_so for (n, _), is_so in zip(by_net, of, strict=True) if n is net) for net in nets]
        for of in (submitted, looked)
    )
    return Claim("scaled_down_input", answer_by_network(met, truly), because)


# ---------------------------------------------------------------------------------------- mechanism


VANISHING = (
    "**Signal-to-noise, or vanishing gradients?** The paper offers a better signal-to-noise"
    " ratio or exploding gradients. The cross-entropy of an image that is decided rightly has"
    " the gradient Σ (p − 1[y]) ∇z: raising the slope drives 1 − p_y below what float32 holds,"
    " and the gradient is exactly zero. That is the opposite of an explosion, which is what"
    " images that are decided wrongly see; and those are never attacked. Sizes are medians of"
    " the largest entry of the gradient, in float64, where zero comes later."
)


def _mechanism(desk: Desk) -> Iterator[Part]:
    n = desk.pick(500, 2000)
    yield Text(f"{VANISHING} n = {n}.")
    keys = [(net, s) for net in NETS for s in SLOPES]
    asked = [CleanGradients(net.sloped(s), net.slice(n)) for net, s in keys]
    gradients = dict(zip(keys, desk.all_facts(asked), strict=True))
    shown = ("zero, float32 (%)", "zero, float64 (%)", "size, right", "size, wrong")
    head = ("network", "slope", *shown)
    rows = [(net.title, label(s), *_gradient_row(gradients[net, s])) for net, s in keys]
    yield Table(
        "Gradients of the cross-entropy at clean images: exactly zero among right ones, and sizes",
        head,
        tuple(rows),
    )
    seen = _measure_seen(desk)
    yield Text(
        "A better signal-to-noise ratio would show in random noise, and under an attack that does"
        " not need the cross-entropy: one step on the margin of the logits."
    )
    under = ("network", "under", *(f"slope {label(s)}" for s in SLOPES))
    yield Table(
        "Accuracy at the largest eps (%)",
        under,
        tuple(
            (net.title, name, *(seen[net, name, s] for s in SLOPES))
            for net in NETS
            for name in UNDER
        ),
    )
    yield _mechanism_claim(gradients, seen)
    yield _say_zeros(gradients)


def _gradient_row(f: Facts) -> tuple[Value, ...]:
    zeros = (100 * f[name] / max(1, f["right"]) for name in ("zero32", "zero64"))
    return (*zeros, f"{f['size_right']:.1e}", f"{f['size_wrong']:.1e}")


def _measure_seen(desk: Desk) -> dict[tuple[Net, str, float], float]:
    n = images(desk, "FGSM")
    keys = [(net, name, s) for net in NETS for name in UNDER for s in SLOPES]
    asked = {
        (net, name, s): net.counted(net.sloped(s), UNDER[name], n, eps=net.eps[-1:])
        for net, name, s in keys
    }
    return {k: found.robust[-1] for k, found in counts(desk, asked).items()}


def _mechanism_claim(
    gradients: dict[tuple[Net, float], Facts], seen: dict[tuple[Net, str, float], float]
) -> Claim:
    """Signal-to-noise: `BETTER` points more than at slope 1, in noise or on the margin. Explosion:
    larger gradients."""
    gained = {
        name: max(seen[net, name, 100.0] - seen[net, name, 1.0] for net in NETS) for name in UNDER
    }
    sizes = {
        net: (gradients[net, 1.0]["size_right"], gradients[net, 100.0]["size_right"])
        for net in NETS
    }
    exploded = {net: steep > plain for net, (plain, steep) in sizes.items()}
    noisy = {
        net: max(seen[net, name, 100.0] - seen[net, name, 1.0] for name in UNDER) > BETTER
        for net in NETS
    }
    explained = [exploded[net] or noisy[net] for net in NETS]
    grows = [net.title for net in NETS if exploded[net]]
    zeros = ", ".join(f"{_gradient_row(gradients[net, 100.0])[0]:.0f} %" for net in NETS)
    told = ", ".join(f"{value:+.1f} {name}" for name, value in gained.items())
    return Claim(
        "mechanism",
        answer_by_network(explained, explained),
        f"slope 100 against 1: most accuracy gained, points: {told}; exactly zero gradients of"
        f" right images in float32 at slope 100: {zeros}; their median size"
        f" grows on {', '.join(grows) or 'no network'}",
    )


def _say_zeros(gradients: Gradients) -> Takeaway:
    """Why the attacks fail, in a line."""
    told = "; ".join(
        f"{net.title} "
        + ", ".join(f"{_gradient_row(gradients[net, s])[0]:.0f}" for s in (1.0, 10.0, 100.0))
        for net in NETS
    )
    return Takeaway(
        10,
        "The cross-entropy's gradient is exactly zero in float32 on these shares of the rightly"
        f" decided images, %, at slopes 1, 10 and 100: {told}.",
    )


# ----------------------------------------------------------------------------------- clean accuracy


def _clean(desk: Desk) -> Iterator[Part]:
    n = images(desk, "FGSM")
    asked = {net: net.counted(net.sloped(1.0), FGSM(), n) for net in (MNIST, CNN1)}
    clean = {net: found.clean for net, found in counts(desk, asked).items()}
    for name, net, around, near in (
        ("mnist_clean", MNIST, 98.0, NEAR_98),
        ("cifar_clean", CNN1, 60.0, NEAR_60),
    ):
        because = (
            f"{clean[net]:.2f} % of {n} test images at slope 1 (allowed: {near:g} points from"
            f" {around:g})"
        )
        yield Claim(name, answer_claim(abs(clean[net] - around) <= near), because)
