"""change: a changed copy of a trained net; and Distilled, the change that is a training."""

from __future__ import annotations

from os import PathLike
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.activations.ramp import FinitePositive
from retroact.changing.change import Change
from retroact.crafting.drawing import drawing
from retroact.crafting.oracle import device_of, dtype_of
from retroact.nets.data import Images
from retroact.reading import Data, Said, as_images, as_module
from retroact.spec import Count, Within, spec, take
from retroact.training.fit import DivergenceError

_LONGEST = 1.0  # norm of a step's gradient


def change(
    net: str | PathLike[str] | nn.Module, what: Said[Change], train: Data | None = None
) -> nn.Module:
    """A copy of `net` after a change of the whole, such as Pruned(0.8) or Int8(); the net stays as
    it is.

    `what` may be a text, and a class stands for its defaults. `train` are training images, which
    Int8 measures its ranges on and Distilled learns from. Raises ValueError for test data, where
    training data is needed and none is given, and for a net that has been changed before.
    """
    module = as_module(net)
    wanted = take(what, Change)
    return wanted(module, None if train is None else as_images(train, module))


@spec
class Distilled(Change):
    """A student of the same architecture, from new weights, that learns the net's own answers:
    T² KL(softmax(t/T) || softmax(s/T)), t and s the logits of net and student, T the `temperature`
    (Hinton, Vinyals & Dean 2015, arXiv:1503.02531; as a defence Papernot et al. 2016,
    arXiv:1511.04508, and against it Carlini & Wagner 2017, arXiv:1608.04644).

    SGD with momentum .9, batches of `batch`, gradients clipped to a norm of 1, the rate from `lr`
    to 0 along half a cosine; labels are not looked at. `seed` fixes weights and order.
    """

    temperature: FinitePositive = 4.0
    epochs: Count = 10
    lr: FinitePositive = 0.05
    batch: Count = 128
    seed: Annotated[int, Within(0, 2**32 - 1)] = 0
    learns = True

    def change(self, net: nn.Module, train: Images | None) -> nn.Module:
        assert train is not None
        x = train.images
        answers = torch.cat([net(_place(part, net)).float().cpu() for part in x.split(256)])
        with drawing(self.seed, device_of(net)), torch.enable_grad():
            _begin_anew(net)
            self._learn(net.train(), x, answers)
        return net.eval()

    def _learn(self, student: nn.Module, x: Tensor, answers: Tensor) -> None:
        sgd = torch.optim.SGD(student.parameters(), self.lr, momentum=0.9, weight_decay=5e-4)
        per_epoch = max(1, len(x) // self.batch)
        drawn = torch.Generator().manual_seed(self.seed)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, self.epochs * per_epoch)
        for _ in range(self.epochs):
            order = torch.randperm(len(x), generator=drawn)
            for rows in order.split(self.batch)[:per_epoch]:
                sgd.zero_grad()
                loss = self._loss(student(_place(x[rows], student)), answers[rows])
                loss.backward()
                # T² and loud logits make the first steps of a new student long
                nn.utils.clip_grad_norm_(student.parameters(), _LONGEST)
                sgd.step()
                cosine.step()
            if not bool(torch.isfinite(loss)):
                raise DivergenceError(f"the student's loss is {float(loss)}; lower lr={self.lr:g}")

    def _loss(self, logits: Tensor, answers: Tensor) -> Tensor:
        t = self.temperature
        goal = torch.softmax(answers.to(logits) / t, 1)
        return t * t * F.kl_div(torch.log_softmax(logits / t, 1), goal, reduction="batchmean")


def _begin_anew(net: nn.Module) -> None:
    """New weights in all modules. ValueError where one has numbers that it cannot draw anew, as a
    student that keeps some of its teacher's would be none."""
    kept = []
    for name, module in net.named_modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            kept.append(f"{name or 'the net'} ({type(module).__name__})")
    if kept:
        raise ValueError(
            f"{', '.join(kept[:5])} would keep what was trained: a module with parameters of its"
            " own needs a method reset_parameters() that draws them anew, as torch's layers have"
        )


def _place(part: Tensor, net: nn.Module) -> Tensor:
    return part.to(device_of(net), dtype_of(net), copy=True)
