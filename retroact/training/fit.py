"""The training loop: epochs of SGD steps, a checkpoint after each, and the same bits after a kill.

Everything random in epoch e comes from (seed, e), and the learning rate from the step's number; so
a checkpoint is the weights (and their mean, where one is kept), the momentum and the number of
epochs behind, and a run that was killed and started again ends with the weights of one that was
not.
"""

from __future__ import annotations

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

from retroact.crafting.domain import Domain
from retroact.nets.classifier import Classifier
from retroact.nets.data import Images
from retroact.spec import show
from retroact.training.batches import Batches
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
    """Trains `net`, which maps examples in their box, such as pixels in [0,1], to logits, in place
    by `recipe`; gives it in eval mode.

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
    batches = Batches(train, recipe.standard, seed, device)
    run = {"recipe": show(recipe), "seed": str(seed), "data": train.fingerprint}
    state = _state(net, recipe.standard, device)
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    done = 0 if folder is None else resume(folder, state, run)
    with _settings(net, recipe.standard, device):
        for epoch in _in_time(done, recipe.standard.epochs, seconds):
            _epoch(state, batches, recipe, epoch, progress)
            if folder is not None:
                write_checkpoint(folder, state, run, epoch + 1)
        if state.mean is not None:
            _become(net, state.mean, batches, recipe.standard)
    return net.eval()


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
    batches: Batches,
    recipe: Recipe,
    epoch: int,
    progress: Callable[[Progress], None] | None,
) -> None:
    plan, steps = recipe.standard, len(batches)
    state.net.train()
    total = torch.zeros((), device=batches.device)
    for step, (x, y) in enumerate(batches.epoch(epoch)):
        state.sgd.param_groups[0]["lr"] = plan.lr_at(epoch * steps + step, steps)
        total += _step(state, recipe, x, y, batches.domain)
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


def _step(state: State, recipe: Recipe, x: Tensor, y: Tensor, domain: Domain) -> Tensor:
    """One step on the examples that the recipe makes of `x`; gives the loss."""
    state.sgd.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=recipe.standard.bf16):
        logits = state.net(recipe(state.net, x, y, domain))
    loss = F.cross_entropy(logits.float(), y)
    loss.backward()
    state.sgd.step()
    return loss.detach()


def _become(net: nn.Module, mean: AveragedModel, batches: Batches, plan: Standard) -> None:
    """`net` with the mean weights, and the batch norms' statistics of the training examples under
    these."""
    net.load_state_dict(mean.module.state_dict())
    update_bn((x for x, _ in batches.epoch(plan.epochs)), net)
