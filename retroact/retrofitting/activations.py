"""Activations: elementwise functions `(z) -> z` that can take the place of a trained net's ReLU.

Each is a spec, so it prints, compares and is named by its content. Beside its formula each says
    neutral           the value at which it is the site's own activation, or None
    jump              whether it has one; autograd does not see a jump, its true derivative has a
                      spike there
    at(site)          what is installed at a site: a jump or a slope keeps the cap of ReLU6,
                      hardtanh, clamp
    surrogate(beta)   the same forward bits with a smoothed backward, for attacks that know the
                      defence
    grid              values of its knob worth trying, from the plain net outwards, where it has a
                      knob

The piecewise ones are one family, z ↦ min(α z 1[z > κ], cap), and show their numbers as `ramp`;
surrogates and folding need nothing else. The smooth ones (Swish, Sigmoid, …) are what they are:
autograd is right about them, they have no neutral value and ignore a cap. Elementwise: any shape
in, the same shape out. A NaN passes through all of them, so that it is seen and not hidden.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.spec import Positive, SpecError, Within, show, spec

if TYPE_CHECKING:
    from retroact.retrofitting.sites import Site

Kernel = Literal["sigmoid", "rectangle"]

_FLOAT32_MAX = torch.finfo(torch.float32).max
FiniteAtLeast0 = Annotated[float, Within(0.0, _FLOAT32_MAX)]
FinitePositive = Annotated[float, Within(0.0, _FLOAT32_MAX, above=True)]


class Ramp(NamedTuple):
    """z ↦ min(alpha · z · 1[z > kappa], cap): what all piecewise activations here have in
    common."""

    alpha: float = 1.0
    kappa: float = 0.0
    cap: float = math.inf


class Activation(Protocol):
    """An elementwise function with a name, a neutral value, a place in a net, and a smoothed
    backward."""

    @property
    def neutral(self) -> Activation | None:
        """The same activation at the value where it is the site's own, or None where there is
        none."""

    @property
    def jump(self) -> bool:
        """Whether the function is discontinuous, so that its autograd derivative misses a spike."""

    def at(self, site: Site) -> Activation | nn.Module:
        """What is installed at this site of a net."""

    def surrogate(self, beta: float, kernel: Kernel = "sigmoid") -> Activation:
        """The same forward, bit for bit, with the backward of `Surrogate`."""

    def __call__(self, z: Tensor, /) -> Tensor: ...


def is_activation(value: object) -> bool:
    """Whether `value` has what an `Activation` needs to be installed."""
    return callable(value) and all(
        hasattr(value, word) for word in ("at", "surrogate", "jump", "neutral")
    )


def cap_of(site: Site) -> float:
    """Where the site's own activation saturates: 6 for ReLU6, infinity for a ReLU."""
    own: Any = site.own
    return own.ramp.cap if hasattr(own, "ramp") else math.inf


# ----------------------------------------------------------------------------- the piecewise family


@spec
class ReLU:
    """min(max(0, z), cap): a site's own activation; cap = 6 is ReLU6. NaN stays NaN."""

    cap: Positive = math.inf
    jump: ClassVar[bool] = False

    @property
    def ramp(self) -> Ramp:
        return Ramp(cap=self.cap)

    @property
    def neutral(self) -> ReLU:
        return ReLU()

    def at(self, site: Site) -> ReLU:
        return ReLU(min(self.cap, cap_of(site)))

    def surrogate(self, beta: float, kernel: Kernel = "sigmoid") -> Surrogate:
        return Surrogate(self, beta, kernel)

    def __call__(self, z: Tensor) -> Tensor:
        return _capped_relu(z, self.cap)


@spec
class JumpReLU:
    """z · 1[z > kappa], then min with cap; at z = kappa it is 0 (Erichson et al. 2019, eq. 11).

    `kappa` is in units of the pre-activation, at least 0. At kappa = 0 it is ReLU, bit for bit.
    """

    kappa: FiniteAtLeast0 = 0.0
    cap: Positive = math.inf
    grid: ClassVar[tuple[float, ...]] = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5)

    @property
    def ramp(self) -> Ramp:
        return Ramp(kappa=self.kappa, cap=self.cap)

    @property
    def neutral(self) -> JumpReLU:
        return JumpReLU(0.0)

    @property
    def jump(self) -> bool:
        return self.kappa > 0.0

    def at(self, site: Site) -> JumpReLU:
        return replace(self, cap=min(self.cap, cap_of(site)))

    def surrogate(self, beta: float, kernel: Kernel = "sigmoid") -> Surrogate:
        return Surrogate(self, beta, kernel)

    def __call__(self, z: Tensor) -> Tensor:
        if self.kappa == 0.0:  # threshold turns -0.0 into 0.0, relu does not
            return _capped_relu(z, self.cap)
        jumped = F.threshold(z, self.kappa, 0.0)
        # hardtanh and not clamp: as at a ReLU6, the derivative is 0 at the cap itself
        return jumped if self.cap == math.inf else F.hardtanh(jumped, 0.0, self.cap)


@spec
class SReLU:
    """alpha · max(0, z), then min with cap: the Sloped ReLU (Borji 2020). At alpha = 1 it is
    ReLU."""

    alpha: FinitePositive = 1.0
    cap: Positive = math.inf
    jump: ClassVar[bool] = False
    grid: ClassVar[tuple[float, ...]] = (1.0, 2.0, 5.0, 10.0, 100.0)

    @property
    def ramp(self) -> Ramp:
        return Ramp(alpha=self.alpha, cap=self.cap)

    @property
    def neutral(self) -> SReLU:
        return SReLU(1.0)

    def at(self, site: Site) -> SReLU:
        return replace(self, cap=min(self.cap, cap_of(site)))

    def surrogate(self, beta: float, kernel: Kernel = "sigmoid") -> Surrogate:
        return Surrogate(self, beta, kernel)

    def __call__(self, z: Tensor) -> Tensor:
        sloped = self.alpha * F.relu(z)
        return sloped if self.cap == math.inf else F.hardtanh(sloped, 0.0, self.cap)


@spec
class BoundedReLU:
    """min(max(0, z), bound) (Zantedeschi et al. 2017). With an infinite bound it is ReLU."""

    bound: Positive = math.inf
    jump: ClassVar[bool] = False
    grid: ClassVar[tuple[float, ...]] = (math.inf, 8.0, 4.0, 2.0, 1.0, 0.5)

    @property
    def ramp(self) -> Ramp:
        return Ramp(cap=self.bound)

    @property
    def neutral(self) -> BoundedReLU:
        return BoundedReLU()

    def at(self, site: Site) -> BoundedReLU:
        return BoundedReLU(min(self.bound, cap_of(site)))

    def surrogate(self, beta: float, kernel: Kernel = "sigmoid") -> Surrogate:
        return Surrogate(self, beta, kernel)

    def __call__(self, z: Tensor) -> Tensor:
        return _capped_relu(z, self.bound)


def _capped_relu(z: Tensor, cap: float) -> Tensor:
    return F.relu(z) if cap == math.inf else F.hardtanh(z, 0.0, cap)


# -------------------------------------------------------------------------- shifts, one per channel


@spec
class ShiftedReLU:
    """ReLU(z + b_c), one shift b_c per channel and site, in units of the pre-activation.

    The numbers lie in a safetensors file, one tensor of c numbers per site name; `write_shifts`
    makes it. `sha256` is settled on construction where the file is there, and checked again when it
    is read: SpecError where they differ. Without a file there is no shift, and it is the site's own
    activation.
    """

    file: str = ""
    sha256: str = ""
    jump: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.file and self.sha256:
            raise SpecError(
                "ShiftedReLU: a sha256 without a file names nothing; give file= as well"
            )
        if self.sha256 in _embedded:
            return
        if self.file and Path(self.file).is_file():
            object.__setattr__(self, "sha256", _checked(Path(self.file).read_bytes(), self))
        elif self.file and not self.sha256:
            raise SpecError(f"ShiftedReLU.file: no file {self.file!r}; write_shifts makes one")

    @property
    def ramp(self) -> Ramp:
        return Ramp()

    @property
    def neutral(self) -> ShiftedReLU:
        return ShiftedReLU()

    def at(self, site: Site) -> Activation | nn.Module:
        inner = ReLU().at(site)
        return ChannelShift(_shift_for(self, site.name), inner) if self.file else inner

    def surrogate(self, beta: float, kernel: Kernel = "sigmoid") -> Surrogate:
        return Surrogate(self, beta, kernel)

    def __call__(self, z: Tensor) -> Tensor:
        if self.file:
            raise TypeError(f"{show(self)} differs from site to site; retrofit a net with it")
        return F.relu(z)


class ChannelShift(nn.Module):
    """activation(z + shift_c) for z of shape (n, c, …) or (n, …, c); `shift` has c numbers.

    The shift is a buffer that the state_dict does not hold: its home is the file of the spec.
    """

    shift: Tensor

    def __init__(self, shift: Tensor, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        # .to: a net that calls its activations as functions has no place to move the buffer from
        shift = self.shift.to(z)
        return self.activation(z + shift.view(_channel_view(len(shift), z)))


def _channel_view(channels: int, z: Tensor) -> tuple[int, ...]:
    if z.ndim >= 2 and z.shape[1] == channels:
        return (-1, *[1] * (z.ndim - 2))
    if z.shape[-1] == channels:
        return (-1,)
    raise ValueError(
        f"{channels} shifts, but the activation's input has shape {tuple(z.shape)}; "
        "expected one shift per channel, on axis 1 or on the last one"
    )


def write_shifts(file: str | Path, shifts: Mapping[str, Tensor]) -> ShiftedReLU:
    """Writes one shift per channel under each site's name to a safetensors file; returns its
    spec."""
    from safetensors.torch import save_file

    plain = {site: b.detach().cpu().flatten().contiguous().clone() for site, b in shifts.items()}
    bad = [site for site, b in plain.items() if not torch.isfinite(b).all()]
    if bad or not plain:
        raise ValueError(
            f"expected finite shifts for at least one site, got {bad or 'none'}; nothing written"
        )
    save_file(plain, str(file))
    return ShiftedReLU(str(file))


_embedded: dict[str, bytes] = {}
"""Shift files that came inside saved networks, by their SHA-256: content is its own address."""


def embed_shifts(content: bytes, sha256: str) -> None:
    """Makes a shift file known by its hash, with no file on disk. SpecError if the hash is
    another's."""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise SpecError(
            f"the shifts that were saved as {sha256} have been changed; save the network again"
        )
    _embedded[sha256] = content


def shift_files(activation: Activation) -> dict[str, bytes]:
    """The shift files that an activation needs, by their SHA-256: what must travel with a saved
    network."""
    if isinstance(activation, PerSite):
        return {k: v for a in activation.activations for k, v in shift_files(a).items()}
    if isinstance(activation, Surrogate):
        return shift_files(activation.activation)
    if isinstance(activation, ShiftedReLU) and activation.file:
        return {activation.sha256: _content(activation)}
    return {}


def _shift_for(activation: ShiftedReLU, name: str) -> Tensor:
    from safetensors.torch import load

    shifts = load(_content(activation))
    if name not in shifts:
        raise KeyError(
            f"{activation.file} has no shift for site {name!r}, only for"
            f" {', '.join(sorted(shifts))}"
        )
    return shifts[name]


def _content(activation: ShiftedReLU) -> bytes:
    if activation.sha256 in _embedded:
        return _embedded[activation.sha256]
    path = Path(activation.file)
    if not path.is_file():
        raise FileNotFoundError(
            f"{show(activation)}: the file is not there; put it back or run from its folder"
        )
    content = path.read_bytes()
    _checked(content, activation)
    return content


def _checked(content: bytes, activation: ShiftedReLU) -> str:
    found = hashlib.sha256(content).hexdigest()
    if activation.sha256 not in ("", found):
        raise SpecError(
            f"ShiftedReLU: {activation.file} has sha256 {found}, expected {activation.sha256}; "
            "these are other shifts: bring back the file, or leave sha256 out to take these"
        )
    return found


# ---------------------------------------------------------------------------------- the smooth ones
# For the swap experiment (Borji 2020, Fig. 2) and JumpReLU's Fig. 3: same weights, another
# function.


def _everywhere(self: Any, site: Site) -> Any:
    return self


def _already_smooth(self: Any, beta: float, kernel: Kernel = "sigmoid") -> Any:
    return self


@spec
class Swish:
    """z · sigmoid(2 beta z) (Erichson et al. 2019, eq. 10); beta = 0.5 is SiLU."""

    beta: FinitePositive = 0.5
    neutral: ClassVar[None] = None
    jump: ClassVar[bool] = False
    at = _everywhere
    surrogate = _already_smooth

    def __call__(self, z: Tensor) -> Tensor:
        return z * torch.sigmoid(2.0 * self.beta * z)


@spec
class Sigmoid:
    """1 / (1 + exp(-z))."""

    neutral: ClassVar[None] = None
    jump: ClassVar[bool] = False
    at = _everywhere
    surrogate = _already_smooth

    def __call__(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)


@spec
class Tanh:
    """(exp(z) - exp(-z)) / (exp(z) + exp(-z))."""

    neutral: ClassVar[None] = None
    jump: ClassVar[bool] = False
    at = _everywhere
    surrogate = _already_smooth

    def __call__(self, z: Tensor) -> Tensor:
        return torch.tanh(z)


@spec
class Softsign:
    """z / (1 + |z|)."""

    neutral: ClassVar[None] = None
    jump: ClassVar[bool] = False
    at = _everywhere
    surrogate = _already_smooth

    def __call__(self, z: Tensor) -> Tensor:
        return F.softsign(z)


@spec
class Softplus:
    """log(1 + exp(z))."""

    neutral: ClassVar[None] = None
    jump: ClassVar[bool] = False
    at = _everywhere
    surrogate = _already_smooth

    def __call__(self, z: Tensor) -> Tensor:
        return F.softplus(z)


@spec
class CELU:
    """max(0, z) + min(0, alpha (exp(z / alpha) - 1)) (Barron 2017)."""

    alpha: FinitePositive = 1.0
    neutral: ClassVar[None] = None
    jump: ClassVar[bool] = False
    at = _everywhere
    surrogate = _already_smooth

    def __call__(self, z: Tensor) -> Tensor:
        return F.celu(z, self.alpha)


# ------------------------------------------------------------------------------------- one per site


@spec
class PerSite:
    """A different activation at each chosen site, in the order in which the forward pass meets
    them."""

    activations: tuple[Activation, ...]

    def __post_init__(self) -> None:
        if not self.activations:
            raise SpecError(
                f"PerSite.activations: expected one activation per site, got {self.activations!r}; "
                "write PerSite((JumpReLU(0.5), SReLU(2.0)))"
            )

    @property
    def neutral(self) -> PerSite | None:
        each = [a.neutral for a in self.activations]
        return None if None in each else PerSite(tuple(a for a in each if a is not None))

    @property
    def jump(self) -> bool:
        return any(a.jump for a in self.activations)

    def at(self, site: Site) -> Activation | nn.Module:
        if site.order >= len(self.activations):
            raise ValueError(
                f"{len(self.activations)} activations, but {site.name!r} is site {site.order}; "
                "give as many activations as there are chosen sites"
            )
        return self.activations[site.order].at(site)

    def surrogate(self, beta: float, kernel: Kernel = "sigmoid") -> PerSite:
        return PerSite(tuple(a.surrogate(beta, kernel) for a in self.activations))

    def __call__(self, z: Tensor) -> Tensor:
        raise TypeError(
            f"{show(self)} differs from site to site; retrofit a net with it, got {z.shape}"
        )


# ------------------------------------------------------------------------------ a smoothed backward


@spec
class Surrogate:
    """The forward of `activation`, bit for bit, with a backward that sees the jump.

    For z ↦ min(α z 1[z > κ], cap) the derivative used is, below the cap and zero from there on,
        sigmoid    α · d/dz [z σ(β(z - κ))] = α (s + β z s (1 - s)),  s = σ(β(z - κ))
        rectangle  α · (1[z > κ] + κ/w · 1[|z - κ| < w/2]),           w = 1/β
    The first is JumpReLU's smooth step (Erichson et al. 2019, eq. 9) moved to κ; there it reads
    σ(2βz), so its β is half of this one. The second spreads the true spike of mass κ over a width
    w. β κ in [4, 16] is what attacks need: much sharper and the spike is missed, much flatter and
    it misleads.
    """

    activation: Activation
    beta: FinitePositive = 8.0
    kernel: Kernel = "sigmoid"
    neutral: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not hasattr(self.activation, "ramp"):
            raise SpecError(
                "Surrogate.activation: expected a piecewise activation such as JumpReLU(1.0), "
                f"got {self.activation!r}; the others need no surrogate"
            )

    @property
    def jump(self) -> bool:
        return self.activation.jump

    def at(self, site: Site) -> Activation | nn.Module:
        inner = self.activation.at(site)
        if isinstance(inner, ChannelShift):
            return ChannelShift(inner.shift, Surrogate(inner.activation, self.beta, self.kernel))
        return inner if isinstance(inner, nn.Module) else replace(self, activation=inner)

    def surrogate(self, beta: float, kernel: Kernel = "sigmoid") -> Surrogate:
        return Surrogate(self.activation, beta, kernel)

    def __call__(self, z: Tensor) -> Tensor:
        out: Tensor = _Smoothed.apply(z, self)
        return out


def smoothed_slope(z: Tensor, ramp: Ramp, beta: float, kernel: Kernel) -> Tensor:
    """The derivative of `Surrogate` at z, elementwise; the formulas stand there."""
    if kernel == "sigmoid":
        s = torch.sigmoid(beta * (z - ramp.kappa))
        slope = s + beta * z * s * (1.0 - s)
    else:
        spike = ramp.kappa * beta * ((z - ramp.kappa).abs() < 0.5 / beta)
        slope = (z > ramp.kappa) + spike
    return ramp.alpha * slope * (ramp.alpha * z < ramp.cap)


class _Smoothed(torch.autograd.Function):
    """torch offers no door but this base class for a backward that is not the forward's own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, surrogate: Surrogate) -> Tensor:
        return surrogate.activation(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        z, ctx.surrogate = inputs
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (z,) = ctx.saved_tensors
        s: Surrogate = ctx.surrogate
        ramp: Ramp = s.activation.ramp  # type: ignore[attr-defined]
        return upstream * smoothed_slope(z, ramp, s.beta, s.kernel), None
