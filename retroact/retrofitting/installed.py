"""What a retrofit puts into a net: modules that stand at a site and compute its new activation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from retroact.activations.activation import Activation, Folded
from retroact.activations.piecewise import without_slope
from retroact.activations.ramp import Ramp
from retroact.activations.site import Site
from retroact.retrofitting.recognition import Args, Function, Kwargs


class Installed(nn.Module):
    """The new activation at one site; does the same in train and in eval mode, and has no
    state_dict.

    `overwrites`: the call it stands for wrote into its input, and something reads that input later.
    """

    activation: Activation | nn.Module

    def __init__(
        self, site: Site, activation: Activation | nn.Module, *, overwrites: bool = False
    ) -> None:
        super().__init__()
        self.site = site
        self.overwrites = overwrites
        self.become(activation)

    def become(self, activation: Activation | nn.Module) -> None:
        """Computes another activation from now on."""
        # torch keeps modules and other attributes apart, and refuses one in the place of the other
        if hasattr(self, "activation"):
            del self.activation
        self.activation = activation

    def forward(
        self, z: Tensor | None = None, instead_of: tuple[Function, Args, Kwargs] | None = None
    ) -> Tensor:
        """The new activation of z; or of what a call, recognised by its values, is the old
        activation of."""
        if z is None:
            assert instead_of is not None
            z = self._input_of(*instead_of)
        if not self.overwrites:
            out: Tensor = self.activation(z)
            return out
        # the clone is what autograd keeps; z itself is about to change
        return z.copy_(self.activation(z.clone()))

    def _input_of(self, func: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """The input of a call that is the old activation by its values; runs it, to see whether it
        still is."""
        assert self.site.argument is not None
        z: Tensor = args[self.site.argument]
        if torch.compiler.is_compiling():  # no values there
            return z
        before = z.clone() if self.site.inplace else z
        out = func(*args, **kwargs)
        own = self.site.own
        assert own is not None
        # None: a statement, z[mask] = 0
        if not _is(own, before, z if out is None else out):
            raise RuntimeError(
                f"activation call {self.site.name!r} was {without_slope(own)} when the net was"
                " retrofitted and is none now, as the net takes another path; write it as F.relu,"
                " or leave it out of sites="
            )
        return z.copy_(before) if self.site.inplace else z

    def folded(self, s: float) -> Folded | None:
        """What stands here in a net whose tensors are divided by s; None where a factor s cannot be
        moved through, as by a module that is no activation."""
        if isinstance(self.activation, Activation):
            return self.activation.folded(s)
        return Folded(self.activation) if s == 1.0 else None

    def extra_repr(self) -> str:
        return (
            f"{self.site.name}: {self.activation}"
            if not isinstance(self.activation, nn.Module)
            else ""
        )


def _is(own: Ramp, z: Tensor, out: Tensor) -> bool:
    """Whether out is the net's own activation of z; at the threshold itself a jump may go either
    way."""
    if z.shape != out.shape or z.dtype != out.dtype:
        return False
    either = (z == own.kappa) & (out == z)
    return bool(((without_slope(own)(z) == out) | either | z.isnan()).all())


def installed(net: nn.Module) -> dict[str, Installed]:
    """Every installed activation of a retrofitted net by the name of its site; empty for another
    net."""
    return {module.site.name: module for module in _modules(net)}


def _modules(net: nn.Module) -> Iterator[Installed]:
    for module in net.modules():
        if isinstance(module, Installed):
            yield module
        # where a net's functions are rerouted, the hook on its forward pass holds them
        for hook in module._forward_pre_hooks.values():
            yield from getattr(getattr(hook, "__self__", None), "installed", {}).values()
