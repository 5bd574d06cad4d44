"""PerSite: a different activation at each site."""

from __future__ import annotations

from torch import Tensor, nn

from retroact.activations.activation import Activation, Kernel
from retroact.activations.site import Site
from retroact.spec import SpecError, show, spec


@spec
class PerSite(Activation):
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

    @property
    def places(self) -> int:
        return len(self.activations)

    def at(self, site: Site) -> Activation | nn.Module:
        if site.order >= len(self.activations):
            raise ValueError(
                f"{len(self.activations)} activations, but {site.name!r} is site {site.order}; "
                "give as many activations as there are chosen sites"
            )
        return self.activations[site.order].at(site)

    def surrogate(self, beta: float, kernel: Kernel = "sigmoid") -> PerSite:
        return PerSite(tuple(a.surrogate(beta, kernel) for a in self.activations))

    def smoothed(self, sharpness: float, kernel: Kernel = "sigmoid") -> PerSite:
        """Each with the bandwidth of its own jump."""
        return PerSite(tuple(a.smoothed(sharpness, kernel) for a in self.activations))

    def files(self) -> dict[str, bytes]:
        return {k: v for a in self.activations for k, v in a.files().items()}

    def __call__(self, z: Tensor) -> Tensor:
        raise TypeError(
            f"{show(self)} differs from site to site; retrofit a net with it, got {z.shape}"
        )
