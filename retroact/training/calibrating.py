"""calibrate: the numbers that an activation needs, measured at each site of a trained net in one
pass over training data."""

from __future__ import annotations

from os import PathLike
from typing import cast

import torch
from torch import Tensor, nn

from retroact.activations.activation import Activation
from retroact.activations.measured import Measured, Moments
from retroact.activations.piecewise import ReLU
from retroact.crafting.oracle import device_of, dtype_of
from retroact.doors import checked
from retroact.ground import neutral
from retroact.nets.data import Images, name_split
from retroact.reading import Data, Said, as_activation, as_changed, as_images, as_module
from retroact.retrofitting.installed import installed
from retroact.spec import CallError, SpecError, known, show
from retroact.training.channels import channels_of

_CHUNK = 256


@neutral()
def calibrate(
    net: str | PathLike[str] | nn.Module,
    activation: Said[Activation],
    train: Data,
    *,
    file: str | PathLike[str] | None = None,
    chunk: int | None = None,
) -> Measured:
    """The activation with its numbers measured on `train`: what goes into every ReLU of `net`, per
    channel over all examples and positions; `net` stays as it is.

    The numbers go into `file` (.safetensors), which the spec then names with its SHA-256; without a
    file they are kept in memory, and in whatever network is saved with them. Channels are on axis 1
    of an activation's input after a convolution, on the last axis after a linear layer. A class
    stands for its defaults: calibrate(net, MeanSparse, train).
    Raises ValueError for test data, for a retrofitted net and for an activation that has no
    numbers to measure.
    """
    net, wanted = as_module(net), _as_measured(as_activation(activation))
    images = as_images(train, net)
    _, chunk, _ = checked(0, chunk)
    _check(net, images)
    work = cast(nn.Module, as_changed(ReLU(), net, images.images)).eval()
    seen = _look(work, images, chunk or _CHUNK)
    return wanted.measured(seen, None if file is None else str(file))


def _as_measured(activation: Activation) -> Measured:
    if not isinstance(activation, Measured):
        names = ", ".join(cls.__name__ for cls in known(Measured))
        raise SpecError(
            f"{show(activation)} needs no numbers, it is ready to use; expected one of: {names}"
        )
    return activation


def _check(net: nn.Module, images: Images) -> None:
    if images.split == "test":
        raise CallError(
            f"{images.name} is test data, on which nothing is measured; use"
            f" {name_split(images.name, 'train')}"
        )
    if installed(net):
        raise ValueError(
            f"the net already carries {show(getattr(net, 'retrofit', None))}; calibrate on the net"
            " before it"
        )


def _look(work: nn.Module, images: Images, chunk: int) -> dict[str, Moments]:
    """What goes into each site of `work`, which carries the ReLUs that the net has."""
    watchers, channels = {}, channels_of(work, images.images[:2].to(device_of(work)))
    for name, module in installed(work).items():
        axis, _ = channels.get(name, (1, 0))
        watchers[name] = _Watcher(cast(Activation, module.activation), axis)
        module.become(watchers[name])
    device, dtype = device_of(work), dtype_of(work)
    with torch.no_grad():
        for part in images.images.split(chunk):
            work(part.to(device, dtype, copy=True))
    return {name: w.seen for name, w in watchers.items() if w.seen is not None}


class _Watcher(nn.Module):
    """An activation that adds up the moments of what goes into it."""

    def __init__(self, inner: Activation, axis: int) -> None:
        super().__init__()
        self.inner, self.axis = inner, axis
        self.seen: Moments | None = None

    def forward(self, z: Tensor) -> Tensor:
        moments = _moments(z, self.axis)
        self.seen = moments if self.seen is None else self.seen + moments
        return self.inner(z)


def _moments(z: Tensor, axis: int) -> Moments:
    """Those of each channel of z, along that axis."""
    rows = z.detach().double().movedim(axis, 0).flatten(1).cpu()
    ends = rows.amin(1), rows.amax(1)
    return Moments(rows.mean(1), rows.var(1, correction=0), *ends, rows.shape[1])
