"""Sealed nets: those whose activation calls cannot be read, and are refused."""

from __future__ import annotations

import difflib

import torch
from torch import fx, nn

from retroact.retrofitting.recognition import KINDS
from retroact.spec import CallError


def refuse_what_cannot_be_read(net: nn.Module, also: tuple[str, ...] = ()) -> None:
    """Raises ValueError or TypeError for nets whose calls are sealed, and for an unknown kind in
    `also`."""
    if type(net).__name__ == "ExportedProgram":
        raise TypeError(
            "the net is exported, its calls are sealed; retrofit the Python net it was made from"
        )
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"expected an nn.Module, got {type(net).__name__}; wrap the function in a module whose"
            " forward calls it and whose attributes are the nets that it uses"
        )
    if any(isinstance(m, torch.jit.ScriptModule) for m in net.modules()):
        raise ValueError(
            "the net is TorchScript, whose calls are sealed; retrofit the Python net it was made"
            " from"
        )
    if any(_is_exported(m) for m in net.modules()):
        raise ValueError(
            "the net is exported, its calls are sealed; retrofit the Python net it was made from"
        )
    if any(_is_quantised(m) for m in net.modules()):
        raise ValueError(
            "the net is quantised, its ReLUs lie inside integer kernels; retrofit the float net"
            " first"
        )
    unknown = [kind for kind in also if kind not in KINDS]
    if unknown:
        near = difflib.get_close_matches(unknown[0], KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CallError(
            f"also={also}: expected kinds of activations ({', '.join(sorted(KINDS))}), got"
            f" {unknown[0]!r}{hint}"
        )


def _is_exported(m: nn.Module) -> bool:
    graph = getattr(m, "graph", None)
    return isinstance(graph, fx.Graph) and any(
        isinstance(n.target, torch._ops.OpOverload) for n in graph.nodes
    )


def _is_quantised(m: nn.Module) -> bool:
    """Whether activations are integers in there; dynamic quantisation leaves them floats but where
    it fuses."""
    home = type(m).__module__.split(".")
    of_weights = "dynamic" in home or "PackedParams" in type(m).__name__
    return "quantized" in home and ("intrinsic" in home or not of_weights)
