"""ByKind: another activation for each kind that a network has."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from retroact.activations.activation import Activation, Kernel
from retroact.activations.piecewise import ReLU
from retroact.activations.ramp import RELU
from retroact.activations.site import Site
from retroact.spec import SpecError, show, spec


@spec
class ByKind(Activation):
    """At every site of a kind the activation that is named for it, cap and all; ReLUs that none is
    named for stay: ByKind(("gelu", "relu6"), (ReLU(), ReLU())).

    Kinds are "relu", "relu6" (a ReLU that ends at 6), "gelu", "silu", "hardswish", …, as a survey
    of a network counts them.
    """

    kinds: tuple[str, ...]
    activations: tuple[Activation, ...]

    def __post_init__(self) -> None:
        if not self.kinds or len(self.kinds) != len(self.activations):
            raise SpecError(
                f"ByKind: expected one activation for each kind, got {len(self.activations)} for"
                f" {self.kinds!r}; write ByKind(('gelu',), (ReLU(),))"
            )
        if len(set(self.kinds)) < len(self.kinds):
            raise SpecError(f"ByKind: expected each kind once, got {self.kinds!r}")

    @property
    def replaces(self) -> tuple[str, ...]:
        return self.kinds

    @property
    def jump(self) -> bool:
        return any(a.jump for a in self.activations)

    def at(self, site: Site) -> Activation | nn.Module:
        named = dict(zip(self.kinds, self.activations, strict=True))
        # the narrower name first: relu6 before relu
        chosen = next((named[kind] for kind in reversed(site.kinds) if kind in named), None)
        if chosen is not None:
            return chosen.at(replace(site, own=RELU if site.own else None))
        if site.own is None:
            raise SpecError(
                f"{show(self)} names none for {site.name!r} ({site.kind}); name one, or leave that"
                " kind out of also="
            )
        return ReLU().at(site)

    def surrogate(self, beta: float, kernel: Kernel = "sigmoid") -> ByKind:
        return replace(self, activations=tuple(a.surrogate(beta, kernel) for a in self.activations))

    def smoothed(self, sharpness: float, kernel: Kernel = "sigmoid") -> ByKind:
        """Each with the bandwidth of its own jump."""
        return replace(
            self, activations=tuple(a.smoothed(sharpness, kernel) for a in self.activations)
        )

    def files(self) -> dict[str, bytes]:
        return {k: v for a in self.activations for k, v in a.files().items()}

    def __call__(self, z: Tensor) -> Tensor:
        raise TypeError(
            f"{show(self)} differs from kind to kind; retrofit a net with it, got {z.shape}"
        )
