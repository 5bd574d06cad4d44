"""The training loop: epochs of SGD steps, a checkpoint after each, and the same bits after a kill.

Everything random in epoch e comes from (seed, e), and the learning rate from the step's number; so
a checkpoint is the weights (and their mean, where one is kept), the momentum and the number of
epochs behind, and a run that was killed and started again ends with the weights of one that was
not.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input
from torch.optim.swa_utils import AveragedModel, update_bn

from retroact.nets.classifier import Classifier
from retroact.nets.data import Images
from retroact.spec import show
from retroact.training.recipes import Recipe, Standard


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or belongs to another run."""


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
    plan = recipe.standard
    steps = len(train) // plan.batch
    if steps == 0:
        raise ValueError(
            f"{len(train)} images make no batch of {plan.batch}; give more, or a smaller batch"
        )
    fingerprint = train.fingerprint
    run = {"recipe": show(recipe), "seed": str(seed), "data": fingerprint}
    net.to(device)
    if plan.channels_last:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sgd = torch.optim.SGD(net.parameters(), plan.lr, plan.momentum, weight_decay=plan.weight_decay)
    mean = AveragedModel(net) if plan.averaged else None
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    done = 0 if folder is None else _resumed(folder, net, mean, sgd, run)
    images, labels = train.images.to(device), train.labels.to(device)
    random = torch.random.fork_rng(devices=_cuda_devices(device))
    with (
        random,
        _of_any_size(net, plan),
        _strided_depthwise_in_float32(net, plan),
        _large_weights_by_matmul(net, plan),
    ):
        for epoch in _in_time(done, plan.epochs, seconds):
            _epoch(net, images, labels, recipe, sgd, epoch, seed, progress)
            if mean is not None and epoch >= plan.epochs - plan.averaged:
                mean.update_parameters(net)
            if folder is not None:
                _write_checkpoint(folder, net, mean, sgd, run | {"epochs": str(epoch + 1)})
        if mean is not None:
            _become(net, mean, images, plan, seed)
    return net.eval()


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


@contextmanager
def _strided_depthwise_in_float32(net: nn.Module, plan: Standard) -> Iterator[None]:
    """Keeps these convs out of autocast: on a CPU their backward pass is some 25 times slower in
    bf16 (oneDNN)."""
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)] if plan.bf16 else []
    depthwise = [
        conv for conv in convs if conv.groups == conv.in_channels > 1 and max(conv.stride) > 1
    ]
    slow = [conv for conv in depthwise if conv.weight.device.type == "cpu"]
    for conv in slow:
        conv.forward = _in_float32(conv.forward)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for conv in slow:
            del conv.forward


@contextmanager
def _large_weights_by_matmul(net: nn.Module, plan: Standard) -> Iterator[None]:
    """Has the gradient of weights that do not fit the cache from one product of matrices
    (`_WeightsByMatmul`)."""
    # no subclass, whose forward may be its own; and autocast leaves float64 alone
    convs = (
        [m for m in net.modules() if type(m) is nn.Conv2d and m.weight.dtype == torch.float32]
        if plan.bf16
        else []
    )
    large = [
        c
        for c in convs
        if c.groups == 1 and c.weight.device.type == "cpu" and c.weight.nbytes > _CACHE
    ]
    plain = [
        c
        for c in large
        if c.dilation == (1, 1) and c.padding_mode == "zeros" and isinstance(c.padding, tuple)
    ]
    for conv in plain:
        conv.forward = partial(_by_matmul, conv)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for conv in plain:
            del conv.forward


_CACHE = 2**21
"""Bytes of a core's own cache; oneDNN adds up a gradient of the weights there image by image."""


def _by_matmul(conv: nn.Conv2d, x: Tensor) -> Tensor:
    # in eval mode the recipe asks for the pixels' gradient alone
    if not (conv.training and torch.is_autocast_enabled(x.device.type)):
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
    bias = None if conv.bias is None else conv.bias.bfloat16()
    out: Tensor = _WeightsByMatmul.apply(
        x.bfloat16(), conv.weight.bfloat16(), bias, conv.stride, conv.padding
    )
    return out


class _WeightsByMatmul(torch.autograd.Function):
    """A convolution whose weights' gradient is sum over images and places of (dy)ᵀ patches(x): one
    product.

    oneDNN goes image by image, and where the gradient (256·256·9 numbers) does not fit the cache
    and the maps are of 4 to 8 pixels, most of its time is the adding up. Same numbers but for
    rounding.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.biased = stride, padding, bias is not None
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(
        ctx: Any, *dy: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        (g,) = dy
        first = not ctx.needs_input_grad[0]
        dx = None if first else conv2d_input(x.shape, weight, g, ctx.stride, ctx.padding)
        rows = g.permute(0, 2, 3, 1).flatten(0, 2)
        products = rows.t() @ _patches(x, g, weight, ctx.stride, ctx.padding)
        dw = products.view(len(weight), *weight.shape[2:], -1)
        return dx, dw.permute(0, 3, 1, 2), rows.sum(0) if ctx.biased else None, None, None


def _patches(
    x: Tensor, g: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """What the kernel sees of `x` at each place of each image: (n·h·w, k·k·c), in the order of `g`
    (n, o, h, w)."""
    (down, across), (n, _, h, w), (_, c, kh, kw) = padding, g.shape, weight.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, across, across, down, down)).contiguous()
    image, row, column, channel = padded.stride()
    steps = (image, row * stride[0], column * stride[1], row, column, channel)
    return padded.as_strided((n, h, w, kh, kw, c), steps).reshape(n * h * w, kh * kw * c)


def _in_float32(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def inside(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    return inside


def _epoch(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    sgd: torch.optim.SGD,
    epoch: int,
    seed: int,
    progress: Callable[[Progress], None] | None,
) -> None:
    plan = recipe.standard
    steps = len(labels) // plan.batch
    torch.manual_seed(_seed_of(seed, epoch))
    net.train()
    total = torch.zeros((), device=images.device)
    for step, rows in enumerate(_batches(len(labels), plan.batch, seed, epoch)):
        rows = _sent(rows, images.device)
        x = _laid_out(_scaled(_augmented(images[rows], plan), plan, epoch), plan)
        sgd.param_groups[0]["lr"] = plan.lr_at(epoch * steps + step, steps)
        total += _stepped(net, sgd, recipe, x, labels[rows])
        # .item() waits for the device, so the loss is looked at now and then, not at every step
        if (step + 1) % 50 == 0 or step + 1 == steps:
            mean = float(total) / (step + 1)
            if mean != mean:
                raise DivergenceError(
                    f"the loss became NaN in epoch {epoch + 1}; lower lr (now {plan.lr:g})"
                )
            if progress is not None:
                progress(Progress(epoch + 1, plan.epochs, step + 1, steps, mean))


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


def _stepped(net: nn.Module, sgd: torch.optim.SGD, recipe: Recipe, x: Tensor, y: Tensor) -> Tensor:
    """One step on the images that the recipe makes of `x`; gives the loss."""
    sgd.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=recipe.standard.bf16):
        logits = net(recipe(net, x, y))
    loss = F.cross_entropy(logits.float(), y)
    loss.backward()
    sgd.step()
    return loss.detach()


# ------------------------------------------------------------------------------------- checkpoints

FILE = "checkpoint.safetensors"
_BUFFER = "momentum_buffer"


def _write_checkpoint(
    folder: Path,
    net: nn.Module,
    mean: AveragedModel | None,
    sgd: torch.optim.SGD,
    facts: dict[str, str],
) -> None:
    """One file, so that there is never a half of a checkpoint; written beside it and then moved
    over it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"net.{k}": v for k, v in net.state_dict().items()}
    tensors |= {} if mean is None else {f"mean.{k}": v for k, v in mean.state_dict().items()}
    tensors |= {
        f"momentum.{k}": sgd.state[p][_BUFFER] for k, p in net.named_parameters() if sgd.state[p]
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    part = folder / f"{FILE}.{os.getpid()}.part"
    with open(part, "wb") as file:
        file.write(safetensors.torch.save(tensors, metadata={"run": json.dumps(facts)}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, folder / FILE)


def _resumed(
    folder: Path,
    net: nn.Module,
    mean: AveragedModel | None,
    sgd: torch.optim.SGD,
    run: dict[str, str],
) -> int:
    """Fills `net`, its `mean` and the momentum of `sgd` from the checkpoint and says how many
    epochs are behind."""
    path = folder / FILE
    if not path.exists():
        return 0
    facts, tensors = _read_checkpoint(path)
    for what, value in run.items():
        if facts.get(what) != value:
            raise CheckpointError(
                f"{path} is of another run: its {what} is {facts.get(what)}, this one's is {value};"
                " choose another folder, or start anew without resuming"
            )
    try:
        net.load_state_dict(_of("net.", tensors))
        if mean is not None:
            mean.load_state_dict(_of("mean.", tensors))
        for name, p in net.named_parameters():
            if f"momentum.{name}" in tensors:
                sgd.state[p][_BUFFER] = torch.empty_like(p).copy_(tensors[f"momentum.{name}"])
    except (RuntimeError, KeyError) as e:
        raise CheckpointError(
            f"{path} does not fit this net: {e}; start anew without resuming"
        ) from e
    return int(facts["epochs"])


def _of(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["run"])
            return facts, {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"{path} is no checkpoint: {e}; delete it, or start anew without resuming"
        ) from e
