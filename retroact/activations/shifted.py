"""ShiftedReLU: one shift per channel and site, whose numbers lie in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.activations.activation import Activation
from retroact.activations.channel_shift import ChannelShift
from retroact.activations.files import embedded
from retroact.activations.piecewise import Piecewise, ReLU
from retroact.activations.ramp import Ramp
from retroact.activations.site import Site
from retroact.spec import SpecError, show, spec


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
        if not self.file and self.sha256:
            raise SpecError(
                "ShiftedReLU: a sha256 without a file names nothing; give file= as well"
            )
        if embedded(self.sha256) is not None:
            return
        if self.file and Path(self.file).is_file():
            object.__setattr__(self, "sha256", self._check(Path(self.file).read_bytes()))
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
        return ChannelShift(self._shift(site.name), inner) if self.file else inner

    def files(self) -> dict[str, bytes]:
        return {self.sha256: self._content()} if self.file else {}

    def __call__(self, z: Tensor) -> Tensor:
        if self.file:
            raise TypeError(f"{show(self)} differs from site to site; retrofit a net with it")
        return F.relu(z)

    def _shift(self, site: str) -> Tensor:
        from safetensors.torch import load

        shifts = load(self._content())
        if site not in shifts:
            raise KeyError(
                f"{self.file} has no shift for site {site!r}, only for {', '.join(sorted(shifts))}"
            )
        return shifts[site]

    def _content(self) -> bytes:
        content = embedded(self.sha256)
        if content is not None:
            return content
        path = Path(self.file)
        if not path.is_file():
            raise FileNotFoundError(
                f"{show(self)}: the file is not there; put it back or run from its folder"
            )
        content = path.read_bytes()
        self._check(content)
        return content

    def _check(self, content: bytes) -> str:
        """The hash of a content. SpecError where it is not that of the spec."""
        sha256 = hashlib.sha256(content).hexdigest()
        if self.sha256 not in ("", sha256):
            raise SpecError(
                f"ShiftedReLU: {self.file} has sha256 {sha256}, expected {self.sha256}; "
                "these are other shifts: bring back the file, or leave sha256 out to take these"
            )
        return sha256


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
