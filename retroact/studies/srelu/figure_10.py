"""Figure 10: the architectures, layer by layer

CNN2 is CNN1 with CNN1's weights; it differs in where the slope is raised. The command line shows
the same: `retroact list nets --detail`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from retroact.reports.studied import Part, Table, Text
from retroact.retrofitting.installed import installed
from retroact.retrofitting.sites import sites
from retroact.studies.desk import Desk
from retroact.studies.srelu.networks import CNN1, CNN2, MNIST, Net


def make(desk: Desk) -> Iterator[Part]:
    for title, nets in (("MNIST CNN", (MNIST,)), ("CIFAR10-CNN1 and CNN2", (CNN1, CNN2))):
        plain = nets[0].model(None)()
        count = sum(p.numel() for p in plain.parameters())
        names = [site.name for site in sites(plain)]
        yield _layers(title, plain, nets)
        yield Text(
            f"`{nets[0].net}`: {count} parameters, {len(names)} activations ({', '.join(names)})."
            f" Input: pixels in [0, 1], mean {_numbers(plain.mean)} and deviation"
            f" {_numbers(plain.std)} inside; output: ten logits. "
            + " ".join(_name_sloped(net) for net in nets)
        )


def _layers(title: str, plain: nn.Module, nets: tuple[Net, ...]) -> Table:
    raised = [installed(net.sloped(2.0)()) for net in nets]
    x = torch.zeros(1, *plain.shape)  # type: ignore[misc]
    rows: list[tuple[str | int, ...]] = [("", "pixels", _shape(x), 0, *("" for _ in nets))]
    for name, layer in plain.module.named_children():  # type: ignore[union-attr, operator]
        x = layer(x)
        marks = ["α" if name in sloped else "" for sloped in raised]
        rows.append(
            (name, f"`{layer}`", _shape(x), sum(p.numel() for p in layer.parameters()), *marks)
        )
    head = ("name", "layer", "output", "parameters", *(f"slope, {net.title}" for net in nets))
    return Table(title, head, tuple(rows))


def _name_sloped(net: Net) -> str:
    chosen = installed(net.sloped(2.0)())
    return f"{net.title} has the slope at {', '.join(chosen)}."


def _shape(x: torch.Tensor) -> str:
    return " × ".join(str(size) for size in x.shape[1:])


def _numbers(values: Any) -> str:
    return ", ".join(f"{v:g}" for v in values.flatten().tolist())
