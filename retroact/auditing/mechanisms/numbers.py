"""Mechanisms of smaller numbers and fewer weights: int8, half floats, pruning."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from retroact.auditing.mechanisms.mechanism import Given, Made, Mechanism


def _int8(given: Given) -> Made:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(given.net), {nn.Linear}, dtype=torch.qint8
        )
    return Made(net, (given.net,))


INT8 = Mechanism("int8 in the linear layers", "numbers", _int8, graph=False, fast=True, row="19")


def _int8_throughout(given: Given) -> Made:
    """Weights and activations of integers, whose scales were found on the first 256 images."""
    net = copy.deepcopy(given.net)
    seen = (given.trained.images[:256] - net.mean) / net.std
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        watched = prepare_fx(net.module, get_default_qconfig_mapping(), (seen[:1],))
        watched(seen)
        net.module = convert_fx(watched)
    return Made(net, (given.net,))


INT8_THROUGHOUT = Mechanism("int8 in all layers", "numbers", _int8_throughout, graph=False)


class InFloat(nn.Module):
    """A network that computes in another type of float."""

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = copy.deepcopy(net).to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x.to(self.dtype)).float()
        return out


def _in_float(given: Given, dtype: torch.dtype) -> Made:
    net = InFloat(given.net, dtype)
    return Made(net, (net, given.net))


FLOATS = tuple(
    Mechanism(name, "numbers", partial(_in_float, dtype=dtype), fast=fast)
    for name, dtype, fast in (
        ("computes in float16", torch.float16, False),
        ("computes in bfloat16", torch.bfloat16, False),
        ("computes in float64", torch.float64, False),
    )
)


def _change_weights(given: Given, changed: str, **how: float) -> Made:
    net = copy.deepcopy(given.net)
    with torch.no_grad():
        for weight in (p for p in net.parameters() if p.dim() > 1):
            weight.copy_(_CHANGES[changed](weight, **how))
    return Made(net, (net, given.net))


def _halve(w: Tensor) -> Tensor:
    return w.half().float()


def _quantise(w: Tensor, bits: float) -> Tensor:
    step = w.abs().max() / (2 ** (bits - 1) - 1)
    return torch.round(w / step) * step


def _prune(w: Tensor, share: float) -> Tensor:
    return torch.where(w.abs() > w.abs().flatten().quantile(share), w, 0.0)


_CHANGES: dict[str, Callable[..., Tensor]] = {
    "halved": _halve,
    "quantised": _quantise,
    "pruned": _prune,
}

WEIGHTS = (
    Mechanism(
        "float16 weights",
        "numbers",
        partial(_change_weights, changed="halved"),
        row="31",
    ),
    Mechanism(
        "weights of 8 bits", "numbers", partial(_change_weights, changed="quantised", bits=8)
    ),
    Mechanism(
        "weights of 4 bits", "numbers", partial(_change_weights, changed="quantised", bits=4)
    ),
    Mechanism(
        "half of the weights pruned",
        "numbers",
        partial(_change_weights, changed="pruned", share=0.5),
    ),
)
