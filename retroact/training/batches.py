"""The batches of training: which examples, in which order, and what is done to images among them.

Everything random in epoch e comes from (seed, e).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from retroact.crafting.domain import Domain, domain_of
from retroact.doors import IMAGE
from retroact.nets.data import Images
from retroact.training.recipes import Standard

_PADDING = 4  # black pixels around an image that is cropped


class Batches:
    """The examples of `train` on a device, in batches of the plan.

    Raises ValueError where they make no batch, and where the plan asks of other examples what makes
    sense for images only.
    """

    def __init__(self, train: Images, plan: Standard, seed: int, device: str) -> None:
        self._plan, self._seed = plan, seed
        self.domain: Domain = domain_of(train)
        _check(plan, self.domain, len(train))
        self._images, self._labels = train.images.to(device), train.labels.to(device)

    @property
    def device(self) -> torch.device:
        """Where the examples lie."""
        return self._labels.device

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return len(self._labels) // self._plan.batch

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Examples (b, …) and labels (b,), in an order of the epoch's own; seeds torch's
        generator."""
        torch.manual_seed(seed_of(self._seed, epoch))
        for rows in order(len(self._labels), self._plan.batch, self._seed, epoch):
            rows = _send(rows, self.device)
            x = self.resize(self.augment(self._images[rows]), epoch)
            if self._plan.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            yield x, self._labels[rows]

    def augment(self, x: Tensor) -> Tensor:
        """Random crops of the images padded by 4 black pixels, half of them flipped, each image its
        own."""
        if not self._plan.augment:
            return x
        n, _, height, width = x.shape
        padded = F.pad(x, (_PADDING,) * 4, value=self.domain.low)
        down, right = _send(torch.randint(0, 2 * _PADDING + 1, (2, n, 1)), x.device)
        across = torch.arange(width, device=x.device).expand(n, width)
        flip = _send(torch.rand(n, 1) < 0.5, x.device)
        columns = right + torch.where(flip, width - 1 - across, across)
        rows = down + torch.arange(height, device=x.device)
        which = torch.arange(n, device=x.device)[:, None, None]
        return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def resize(self, x: Tensor, epoch: int) -> Tensor:
        """The images at the side of this epoch; each pixel of a smaller one is a mean over what it
        covers."""
        if epoch >= len(self._plan.sizes):
            return x
        size = (self._plan.sizes[epoch],) * 2
        return self.domain.clamp(F.interpolate(x, size=size, mode="bilinear", antialias=True))


def _check(plan: Standard, domain: Domain, n: int) -> None:
    for word in ("augment", "sizes", "channels_last"):
        if getattr(plan, word) and len(domain.shape) != IMAGE:
            raise ValueError(
                f"Standard.{word} is for images (n, c, h, w), got examples of the shape"
                f" {domain.shape}; leave it out"
            )
    if n < plan.batch:
        raise ValueError(f"{n} images make no batch of {plan.batch}; give more, or a smaller batch")


def order(n: int, batch: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """The rows of each batch of an epoch; an incomplete last batch is left out."""
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(seed, epoch)))
    for start in range(0, n - batch + 1, batch):
        yield shuffled[start : start + batch]


def seed_of(seed: int, epoch: int) -> int:
    """A seed of the epoch's own."""
    # a hash, because seed + epoch would make epoch 1 of seed 0 the same as epoch 0 of seed 1
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:7], "big")


def _send(x: Tensor, device: torch.device) -> Tensor:
    """`x` on the device, without waiting for what the device is doing."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
