"""ShiftedReLU: one shift per channel and site, whose numbers lie in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.activations.activation import Activation
from retroact.activations.channel_shift import ChannelShift
from retroact.activations.files import Kept
from retroact.activations.piecewise import Piecewise, ReLU
from retroact.activations.ramp import Ramp
from retroact.activations.site import Site
from retroact.spec import show, spec


@spec
class ShiftedReLU(Piecewise):
    """ReLU(z + b_c), one shift b_c per channel and site, in units of the pre-activation.

    The numbers lie in a safetensors file, one tensor of c numbers per site name; `write_shifts`
    makes it. `sha256` is settled on construction where the file is there, and checked again when it
    is read: SpecError where they differ. Without a file there is no shift, and it is the site's own
    activation.
    """

    file: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", self._kept.settle())

    @property
    def ramp(self) -> Ramp:
        return Ramp()

    @property
    def neutral(self) -> ShiftedReLU:
        return ShiftedReLU()

    def at(self, site: Site) -> Activation | nn.Module:
        inner = ReLU().at(site)
        return ChannelShift(self._kept.tensor(site.name), inner) if self.file else inner

    def files(self) -> dict[str, bytes]:
        return {self.sha256: self._kept.content()} if self.file else {}

    def __call__(self, z: Tensor) -> Tensor:
        if self.file:
            raise TypeError(f"{show(self)} differs from site to site; retrofit a net with it")
        return F.relu(z)

    @property
    def _kept(self) -> Kept:
        return Kept("ShiftedReLU", "shifts", "write_shifts", self.file, self.sha256)


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
