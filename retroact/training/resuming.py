"""Checkpoints of training: one file after every epoch, or so many steps, from which a run that was
killed goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from retroact.files import CheckpointError, parse_object, replacing
from retroact.spec import shorten

FILE = "checkpoint.safetensors"
_BUFFER = "momentum_buffer"


class Changing(Protocol):
    """What a run changes: tensors by name, and how it takes them back."""

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, on the CPU."""
        ...

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes all of it from `tensors`; raises RuntimeError or KeyError where they do not fit."""
        ...


@dataclass(frozen=True)
class State:
    """What an epoch changes: the net, the mean of its weights where one is kept, and SGD's
    momentum."""

    net: nn.Module
    mean: AveragedModel | None
    sgd: torch.optim.SGD

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, on the CPU."""
        named = {f"net.{name}": v for name, v in self.net.state_dict().items()}
        if self.mean is not None:
            named |= {f"mean.{name}": v for name, v in self.mean.state_dict().items()}
        named |= {
            f"momentum.{name}": self.sgd.state[p][_BUFFER]
            for name, p in self.net.named_parameters()
            if self.sgd.state[p]
        }
        return {name: v.detach().cpu().contiguous() for name, v in named.items()}

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes all of it from `tensors`; raises RuntimeError or KeyError where they do not fit."""
        self.net.load_state_dict(_below("net.", tensors))
        if self.mean is not None:
            self.mean.load_state_dict(_below("mean.", tensors))
        for name, p in self.net.named_parameters():
            if f"momentum.{name}" in tensors:
                kept = torch.empty_like(p).copy_(tensors[f"momentum.{name}"])
                self.sgd.state[p][_BUFFER] = kept


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def write_checkpoint(folder: Path, state: Changing, run: Mapping[str, str], epochs: int) -> None:
    """Writes what is there after `epochs` epochs (or steps) of the run that the texts of `run`
    name."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"run": json.dumps({**run, "epochs": str(epochs)})}
    with replacing(folder / FILE) as draft:
        draft.write_bytes(safetensors.torch.save(state.tensors(), metadata=facts))


def resume(folder: Path, state: Changing, run: Mapping[str, str]) -> int:
    """Fills `state` from the checkpoint in `folder`; gives the number of epochs (or steps) that are
    behind.

    It is 0 where there is no checkpoint. Raises CheckpointError where it is damaged, of another
    run, or of another net.
    """
    path = folder / FILE
    if not path.exists():
        return 0
    facts, tensors = read_checkpoint(path)
    for what, value in run.items():
        if facts.get(what) != value:
            raise CheckpointError(
                f"{path} is of another run: its {what} is {shorten(str(facts.get(what)))}, this"
                f" one's is {value}; choose another folder, or start anew without resuming"
            )
    try:
        state.fill(tensors)
        return int(facts["epochs"])
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as e:
        raise CheckpointError(
            f"{path} does not fit this net: {e}; start anew without resuming"
        ) from e


def drop_checkpoint(folder: Path) -> None:
    """Removes the checkpoint of a run that is done, and its folder where nothing else is in it:
    a folder of that name may be somebody's own."""
    (folder / FILE).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def read_checkpoint(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What a checkpoint says of its run, and its tensors; CheckpointError where it is none."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = parse_object(file.metadata()["run"])
            return facts, {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as e:  # a type that torch has not, metadata that are none
        raise CheckpointError(
            f"{path} is no checkpoint: {shorten(str(e))}; delete it, or start anew without resuming"
        ) from e
