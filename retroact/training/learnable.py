"""What hardening may learn of a network, everything else frozen.

Of every activation a number: one *shift* per channel, ReLU(z + b), which equals moving the biases
and so folds to no cost; one *kappa*, or one *slope*. Or weights: the affine parameters of the
*norms*; these and the *ends*, the layer that sees the example and the one that gives the logits; or
*all*. *Early* is the shifts and the first layer's weights. *Low-rank* is the norms, all biases, the
first layer and, of those after it, as many as fit into two per cent of the network, by a matrix of
rank one that is added to their weights. The logits' biases always belong to it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.hooks import RemovableHandle

from retroact.activations.activation import Activation
from retroact.activations.channel_shift import channel_view
from retroact.activations.files import embed
from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import JumpReLU, SReLU
from retroact.activations.shifted import ShiftedReLU
from retroact.crafting.oracle import in_float
from retroact.retrofitting.installed import installed
from retroact.training.channels import channels_of

Learn = Literal["shifts", "kappa", "slopes", "early", "norms", "ends", "low-rank", "all"]

SHARPNESS = 8.0
"""beta · kappa of the smoothed backward of a jump: within [4, 16], where it sees the jump and is
not misled by it."""

ENDS_SHARE = 0.3
"""The weights of the first and last layer, which are small numbers and many, take this share of the
norms' rate."""

MOST = 0.02
"""The share of the network's numbers that `low-rank` may learn."""

_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Learnable:
    """The weights that are learned, by name, and the number of each activation, where one is.

    `rate` is that of the first step where the recipe says none; weights that are no vectors take
    the share `slow` of it. Where `most` is not 0, as many of the other layers as fit into that
    share of the network are learned by a product.
    """

    rate: float
    weights: Callable[[nn.Module, Tensor], set[str]]
    number: Number | None = None
    slow: float = 1.0
    most: float = 0.0

    def parameters_of(self, net: nn.Module, example: Tensor) -> dict[str, nn.Parameter]:
        """The parameters of `net` that are learned; it is run on `example` (n, …) to see its
        layers."""
        names = self.weights(net, example)
        return {name: p for name, p in net.named_parameters() if name in names}

    def products_of(
        self, net: nn.Module, example: Tensor, frozen: Container[str] = ()
    ) -> list[str]:
        """The layers that are learned by a product, in the order in which they run, as long as
        there is room; not those whose weights are learned, `frozen` or another layer's as well."""
        learned, own = self.parameters_of(net, example), _unshared(net)
        room = self.most * sum(p.numel() for p in net.parameters())
        room -= sum(p.numel() for name, p in learned.items() if name not in frozen)
        found: list[str] = []
        for path in dict.fromkeys(layers_of(net, example)):
            name = f"{path}.weight"
            if name not in own or name in learned or name in frozen:
                continue
            room -= len(own[name]) + own[name][0].numel()
            if room < 0:
                break
            found.append(path)
        return found

    def share(self, parameter: nn.Parameter) -> float:
        """The share of the rate that a learned parameter takes."""
        return self.slow if parameter.dim() > 1 else 1.0


# --------------------------------------------------------------------------- numbers of activations


class Number(Protocol):
    """What is learned of an activation; `neutral` is the value that leaves the network as it is."""

    neutral: ClassVar[float]

    def count(self, channels: int) -> int:
        """How many there are of it, where the activation's input has so many channels."""

    def __call__(self, inner: Activation, z: Tensor, value: Tensor) -> Tensor:
        """The activation `inner` of z, changed by the learned value, with gradients for both."""

    def activation(self, values: Mapping[str, Tensor]) -> Activation:
        """The learned values, by site, as a spec, which prints, saves and names a network."""


@dataclass(frozen=True)
class Shift(Number):
    """One per channel: inner(z + b)."""

    neutral: ClassVar[float] = 0.0

    def count(self, channels: int) -> int:
        return channels

    def __call__(self, inner: Activation, z: Tensor, value: Tensor) -> Tensor:
        return inner(z + value.view(channel_view(len(value), z, "shifts")))

    def activation(self, values: Mapping[str, Tensor]) -> ShiftedReLU:
        content = to_bytes({site: v.contiguous() for site, v in values.items()})
        name = hashlib.sha256(content).hexdigest()
        embed(content, sha256=name)
        return ShiftedReLU("learned", name)


@dataclass(frozen=True)
class Kappa(Number):
    """JumpReLU with a straight-through gradient for kappa: that of z σ(β(z − κ)), βκ as in the
    audit's kernel."""

    neutral: ClassVar[float] = 0.0

    def count(self, channels: int) -> int:
        return 1

    def __call__(self, inner: Activation, z: Tensor, value: Tensor) -> Tensor:
        kappa = value.clamp_min(0.0)
        beta = SHARPNESS / kappa.detach().clamp_min(0.1)
        smooth = z * torch.sigmoid(beta * (z - kappa))
        return smooth + (z * (z > kappa) - smooth).detach()

    def activation(self, values: Mapping[str, Tensor]) -> PerSite:
        return PerSite(tuple(JumpReLU(max(0.0, float(v))) for v in values.values()))


@dataclass(frozen=True)
class Slope(Number):
    """One factor: α · inner(z)."""

    neutral: ClassVar[float] = 1.0

    def count(self, channels: int) -> int:
        return 1

    def __call__(self, inner: Activation, z: Tensor, value: Tensor) -> Tensor:
        return value * inner(z)

    def activation(self, values: Mapping[str, Tensor]) -> PerSite:
        return PerSite(tuple(SReLU(max(1e-6, float(v))) for v in values.values()))


class LearnedActivation(nn.Module):
    """An activation whose number, or one number per channel, is learned."""

    def __init__(self, number: Number, inner: Activation, channels: int) -> None:
        super().__init__()
        self.number, self.inner = number, inner
        self.value = nn.Parameter(torch.full((number.count(channels),), number.neutral))

    def forward(self, z: Tensor) -> Tensor:
        return self.number(self.inner, z, self.value)

    def dose(self, share: float) -> Tensor:
        """The value at `share` of the way from the neutral one to the learned one."""
        neutral = self.number.neutral
        return neutral + share * (self.value.detach() - neutral)


def install_numbers(
    net: nn.Module, number: Number, example: Tensor
) -> dict[str, LearnedActivation]:
    """Puts a learned activation in the place of every installed one of `net`, by site."""
    places, channels = installed(net), channels_of(net, example)
    learned = {}
    for name, module in places.items():
        assert not isinstance(module.activation, nn.Module)
        learned[name] = LearnedActivation(number, module.activation, channels[name][1])
        module.become(learned[name].to(example.device))
    return learned


# ----------------------------------------------------------------------------------------- products


class Product(nn.Module):
    """w + a bᵀ: of the weights w (m, …) of a layer the m numbers of a and as many of b as a row of
    w has are learned (Hu et al. 2021, arXiv:2106.09685). a is 0 before the first step."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        drawn = torch.randn(weight[0].numel(), generator=torch.Generator().manual_seed(0))
        self.a = nn.Parameter(torch.zeros(len(weight), 1))
        self.b = nn.Parameter(0.1 * drawn[None])

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.value.view(weight.shape)

    @property
    def value(self) -> Tensor:
        """a bᵀ, (m, numbers of a row)."""
        return self.a @ self.b


def install_products(net: nn.Module, paths: Iterable[str]) -> dict[str, Product]:
    """Adds a product to the weights of each of these layers of `net`, by path."""
    made = {}
    for path in paths:
        layer = net.get_submodule(path)
        assert isinstance(layer.weight, Tensor)
        made[path] = Product(layer.weight).to(layer.weight)
        register_parametrization(layer, "weight", made[path])
    return made


# ------------------------------------------------------------------------------------------ weights


def _unshared(net: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that have one name only."""
    named = list(net.named_parameters(remove_duplicate=False))
    times = Counter(id(p) for _, p in named)
    return {name: p for name, p in named if times[id(p)] == 1}


def _every(net: nn.Module, example: Tensor) -> set[str]:
    return {name for name, _ in net.named_parameters()}


def _biases_of_logits(net: nn.Module, example: Tensor) -> set[str]:
    last = layers_of(net, example)[-1:]
    return {f"{path}.bias" for path in last if isinstance(net.get_submodule(path), nn.Linear)}


def _norms(net: nn.Module, example: Tensor) -> set[str]:
    norms = [path for path, module in net.named_modules() if isinstance(module, _NORMS)]
    return _biases_of_logits(net, example) | _affine(norms)


def _ends(net: nn.Module, example: Tensor) -> set[str]:
    layers = layers_of(net, example)
    return _norms(net, example) | _affine(layers[:1] + layers[-1:])


def _vectors_and_first(net: nn.Module, example: Tensor) -> set[str]:
    layers = layers_of(net, example)
    return _norms(net, example) | _affine(layers[:1]) | {f"{path}.bias" for path in layers}


def _early(net: nn.Module, example: Tensor) -> set[str]:
    return _biases_of_logits(net, example) | {f"{layers_of(net, example)[0]}.weight"}


def _affine(paths: list[str]) -> set[str]:
    return {f"{path}.{what}" for path in paths for what in ("weight", "bias")}


def layers_of(net: nn.Module, example: Tensor) -> list[str]:
    """The paths of the layers with weights, in the order in which they run on `example` (n, …)."""
    ran: list[str] = []
    with _watching(
        module.register_forward_hook(lambda m, args, out, path=path: ran.append(path))
        for path, module in net.named_modules()
        if isinstance(module, _LAYERS)
    ):
        in_float(net, example)
    return ran


@contextmanager
def _watching(hooks: Iterator[RemovableHandle]) -> Iterator[None]:
    """The hooks for the time of the block, without gradients."""
    placed = list(hooks)
    try:
        with torch.no_grad():
            yield
    finally:
        for hook in placed:
            hook.remove()


LEARNABLE: dict[Learn, Learnable] = {
    "shifts": Learnable(0.03, _biases_of_logits, Shift()),
    "kappa": Learnable(0.03, _biases_of_logits, Kappa()),
    "slopes": Learnable(0.03, _biases_of_logits, Slope()),
    "early": Learnable(0.03, _early, Shift(), slow=ENDS_SHARE),
    "norms": Learnable(0.01, _norms),
    "ends": Learnable(0.03, _ends, slow=ENDS_SHARE),
    "low-rank": Learnable(0.03, _vectors_and_first, slow=ENDS_SHARE, most=MOST),
    "all": Learnable(0.001, _every),
}
"""What each word of `Hardening.learn` means."""
