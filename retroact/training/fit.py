"""The training loop: epochs of SGD steps, a checkpoint after each, and the same bits after a kill.

Everything random in epoch e comes from (seed, e), and the learning rate from the step's number; so
a checkpoint is the weights (and their mean, where one is kept), the momentum and the number of
epochs behind, and a run that was killed and started again ends with the weights of one that was
not.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from retroact.nets.classifier import Classifier
from retroact.nets.data import Images
from retroact.spec import show
from retroact.training.convolutions import speed_up_bf16
from retroact.training.recipes import Recipe, Standard
from retroact.training.resuming import State, resume, write_checkpoint


class DivergenceError(ArithmeticError):
    """Training whose loss is no longer a number."""


class UnfinishedError(TimeoutError):
    """Training whose time is up; the same call goes on from its checkpoint."""


@dataclass(frozen=True)
class Progress:
    """How far training is, counted from 1; `loss` is the mean over the epoch's steps so far."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float

    @property
    def fraction(self) -> float:
        """The part of all steps that is behind, from 0 to 1."""
        return (self.epoch - 1 + self.step / self.steps) / self.epochs


Net = TypeVar("Net", bound=nn.Module)


def fit(
    net: Net,
    train: Images,
    recipe: Recipe,
    *,
    seed: int = 0,
    device: str = "cpu",
    checkpoint_dir: str | Path | None = None,
    seconds: float | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Net:
    """Trains `net`, which maps pixels in [0,1] to logits, in place by `recipe`; gives it in eval
    mode.

    With `checkpoint_dir`, goes on from the checkpoint there if there is one and writes one after
    every epoch; raises CheckpointError where it is another run's. Raises DivergenceError where the
    loss is NaN. With `seconds`, which needs a `checkpoint_dir`, trains one epoch and then as many
    as will end in that time, judged by the longest of them; raises UnfinishedError where these were
    not all.
    """
    if seconds is not None and checkpoint_dir is None:
        raise ValueError(
            "seconds= ends a run that goes on from its checkpoint; give checkpoint_dir= too"
        )
    _check_batch(train, recipe.standard)
    run = {"recipe": show(recipe), "seed": str(seed), "data": train.fingerprint}
    state = _state(net, recipe.standard, device)
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    done = 0 if folder is None else resume(folder, state, run)
    images = train.images.to(device), train.labels.to(device)
    with _settings(net, recipe.standard, device):
        for epoch in _in_time(done, recipe.standard.epochs, seconds):
            _epoch(state, images, recipe, epoch, seed, progress)
            if folder is not None:
                write_checkpoint(folder, state, run, epoch + 1)
        if state.mean is not None:
            _become(net, state.mean, images[0], recipe.standard, seed)
    return net.eval()


def _check_batch(train: Images, plan: Standard) -> None:
    if len(train) < plan.batch:
        raise ValueError(
            f"{len(train)} images make no batch of {plan.batch}; give more, or a smaller batch"
        )


def _state(net: nn.Module, plan: Standard, device: str) -> State:
    """The net on its device, before the first step."""
    net.to(device)
    if plan.channels_last:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sgd = torch.optim.SGD(net.parameters(), plan.lr, plan.momentum, weight_decay=plan.weight_decay)
    return State(net, AveragedModel(net) if plan.averaged else None, sgd)


@contextmanager
def _settings(net: nn.Module, plan: Standard, device: str) -> Iterator[None]:
    """What holds while a net trains: random numbers of its own, and what the plan asks of it."""
    fast = speed_up_bf16(net) if plan.bf16 else nullcontext()
    with torch.random.fork_rng(devices=_cuda_devices(device)), _of_any_size(net, plan), fast:
        yield


def _cuda_devices(device: str) -> list[torch.device]:
    return [torch.device(device)] if device.startswith("cuda") else []


def _in_time(done: int, epochs: int, seconds: float | None) -> Iterator[int]:
    """The epochs from `done` on, until the next one would end too late."""
    began, longest = time.monotonic(), 0.0
    for epoch in range(done, epochs):
        now = time.monotonic()
        if seconds is not None and epoch > done and now - began + longest > seconds:
            raise UnfinishedError(
                f"{epoch} of {epochs} epochs are behind; train again to go on from there"
            )
        yield epoch
        longest = max(longest, time.monotonic() - now)


@contextmanager
def _of_any_size(net: nn.Module, plan: Standard) -> Iterator[None]:
    """A classifier that knows its images' shape takes those of `plan.sizes` too."""
    if not (plan.sizes and isinstance(net, Classifier)):
        yield
        return
    shape, net.shape = net.shape, None
    try:
        yield
    finally:
        net.shape = shape


def _epoch(
    state: State,
    data: tuple[Tensor, Tensor],
    recipe: Recipe,
    epoch: int,
    seed: int,
    progress: Callable[[Progress], None] | None,
) -> None:
    plan, (images, labels) = recipe.standard, data
    steps = len(labels) // plan.batch
    torch.manual_seed(_seed_of(seed, epoch))
    state.net.train()
    total = torch.zeros((), device=images.device)
    for step, rows in enumerate(_batches(len(labels), plan.batch, seed, epoch)):
        rows = _sent(rows, images.device)
        x = _laid_out(_scaled(_augmented(images[rows], plan), plan, epoch), plan)
        state.sgd.param_groups[0]["lr"] = plan.lr_at(epoch * steps + step, steps)
        total += _step(state, recipe, x, labels[rows])
        # .item() waits for the device, so the loss is looked at now and then, not at every step
        if (step + 1) % 50 == 0 or step + 1 == steps:
            mean = float(total) / (step + 1)
            if mean != mean:
                raise DivergenceError(
                    f"the loss became NaN in epoch {epoch + 1}; lower lr (now {plan.lr:g})"
                )
            if progress is not None:
                progress(Progress(epoch + 1, plan.epochs, step + 1, steps, mean))
    if state.mean is not None and epoch >= plan.epochs - plan.averaged:
        state.mean.update_parameters(state.net)


def _become(net: nn.Module, mean: AveragedModel, images: Tensor, plan: Standard, seed: int) -> None:
    """`net` with the mean weights, and the batch norms' statistics of the training images under
    these."""
    net.load_state_dict(mean.module.state_dict())
    torch.manual_seed(_seed_of(seed, plan.epochs))
    batches = (
        _sent(rows, images.device) for rows in _batches(len(images), plan.batch, seed, plan.epochs)
    )
    update_bn((_laid_out(_augmented(images[rows], plan), plan) for rows in batches), net)


def _seed_of(seed: int, epoch: int) -> int:
    # a hash, because seed + epoch would make epoch 1 of seed 0 the same as epoch 0 of seed 1
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:7], "big")


def _batches(n: int, batch: int, seed: int, epoch: int) -> Iterator[Tensor]:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(_seed_of(seed, epoch)))
    for start in range(0, n - batch + 1, batch):
        yield order[start : start + batch]


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """`x` on the device, without waiting for what the device is doing."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def _laid_out(x: Tensor, plan: Standard) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if plan.channels_last else x


def _augmented(x: Tensor, plan: Standard) -> Tensor:
    """Random crops of the images padded by 4 black pixels, half of them flipped, each image its
    own."""
    if not plan.augment:
        return x
    n, _, height, width = x.shape
    padded = F.pad(x, (4, 4, 4, 4))
    down, right = _sent(torch.randint(0, 9, (2, n, 1)), x.device)
    across = torch.arange(width, device=x.device).expand(n, width)
    flip = _sent(torch.rand(n, 1) < 0.5, x.device)
    columns = right + torch.where(flip, width - 1 - across, across)
    rows = down + torch.arange(height, device=x.device)
    which = torch.arange(n, device=x.device)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _scaled(x: Tensor, plan: Standard, epoch: int) -> Tensor:
    """The images at the side of this epoch; each pixel of a smaller one is a mean over what it
    covers."""
    if epoch >= len(plan.sizes):
        return x
    return F.interpolate(x, size=(plan.sizes[epoch],) * 2, mode="bilinear", antialias=True).clamp(
        0, 1
    )


def _step(state: State, recipe: Recipe, x: Tensor, y: Tensor) -> Tensor:
    """One step on the images that the recipe makes of `x`; gives the loss."""
    state.sgd.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=recipe.standard.bf16):
        logits = state.net(recipe(state.net, x, y))
    loss = F.cross_entropy(logits.float(), y)
    loss.backward()
    state.sgd.step()
    return loss.detach()
