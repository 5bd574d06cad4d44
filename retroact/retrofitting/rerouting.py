"""Rerouting: where a net does not trace, its activation calls are caught while it runs.

Two hooks open and close a torch function mode around the forward pass. The mode sees each call by
the name of its site and sends it to the installed activation. The net keeps its class, attributes
and state_dict, both branches of an `if` are covered, and autograd sees only the new activation's
own operations (a dispatch mode would not do: there the derivative is already the old one).

A call that was recognised by its values (`z * (z > 0)`, `z[z <= k] = 0`) is found again as the n-th
call of its function in its module. It runs first, and is replaced if it still computes what it
computed then.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable

from torch import nn
from torch.overrides import TorchFunctionMode

from retroact.activations.activation import Activation
from retroact.activations.site import Site
from retroact.retrofitting.installed import Installed
from retroact.retrofitting.recognition import KINDS, Args, Call, Function, Kwargs, recognise
from retroact.retrofitting.selection import selects_by_name
from retroact.retrofitting.watching import Whereabouts, activation_modules, function_name

Answer = Callable[[Function, Args, Kwargs], object]
"""What a call gives, of its function, arguments and keywords."""


class _Mode(TorchFunctionMode):
    """torch's modes are entered by inheritance only; all it does is ask."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def __torch_function__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        return self.answer(func, args, kwargs or {})


class Rerouting:
    """Sends the activation calls of one net to what is installed, by the names of their sites.

    `left` are the names that the survey saw and that were not chosen. A call that the survey did
    not see (another branch, another number of loops) is installed when it comes, if the selection
    is by name.
    """

    def __init__(
        self,
        put_in: dict[str, Installed],
        left: set[str],
        activation: Activation,
        sites: str,
        also: tuple[str, ...],
    ) -> None:
        self.installed = put_in
        self.left = left
        self.activation = activation
        self.sites = sites
        self.also = also
        self.where = Whereabouts()
        self.modules: set[str] = set()
        self.functions = {
            i.site.name.split("#")[0] for i in put_in.values() if i.site.argument is not None
        }
        self._open: dict[int, list[_Mode]] = defaultdict(list)

    def attach(self, net: nn.Module) -> nn.Module:
        """Hooks the net; it is rerouted from now on."""
        self.modules = activation_modules(net)
        self.where.attach(net)
        net.register_forward_pre_hook(self.open)
        net.register_forward_hook(self.close, always_call=True)
        return net

    def open(self, *_: object) -> None:
        """Before the forward pass."""
        mode = _Mode(self._answer)
        self._open[threading.get_ident()].append(mode)
        mode.__enter__()

    def close(self, *_: object) -> None:
        """After the forward pass, also one that raised."""
        if modes := self._open[threading.get_ident()]:
            modes.pop().__exit__(None, None, None)

    def _answer(self, func: Function, args: Args, kwargs: Kwargs) -> object:
        name = function_name(func)
        call = recognise(name, args, kwargs)
        if call is None:
            return self._answer_by_value(name.strip("_"), func, args, kwargs)
        if call.kind not in self.also and (call.own is None or call.own.jump):
            return func(*args, **kwargs)
        site = self._site(call)
        if site.name not in self.installed and not self._belongs(site):
            return func(*args, **kwargs)
        return self.installed[site.name](call.z)

    def _answer_by_value(self, name: str, func: Function, args: Args, kwargs: Kwargs) -> object:
        """Runs a call, and replaces its result where it is a site that was recognised by its
        values."""
        if name in KINDS or f"{self.where.path}.{name}()".lstrip(".") not in self.functions:
            return func(*args, **kwargs)
        put_in = self.installed.get(self.where.name(name, ""))
        if put_in is None or "out" in kwargs:
            return func(*args, **kwargs)
        if put_in.site.own is None or put_in.site.argument is None:
            return func(*args, **kwargs)
        return put_in(instead_of=(func, args, kwargs))

    def _site(self, call: Call) -> Site:
        module = self.where.path if self.where.path in self.modules else ""
        name = self.where.name(call.kind, module)
        shape = tuple(call.z.shape[1:])
        return Site(name, len(self.installed), call.own, call.kind, module, shape, call.inplace)

    def _belongs(self, site: Site) -> bool:
        """Installs a call that no survey has seen, where the selection says what to do with it."""
        if site.name in self.left:
            return False
        if self.activation.places is not None or not self.sites.strip():
            raise RuntimeError(
                f"activation call {site.name!r} was not seen when the net was retrofitted, so it"
                " has no activation of its own; retrofit again with an example= that takes this"
                " path"
            )
        if not selects_by_name(self.sites, site.name):
            return False
        self.installed[site.name] = Installed(
            site, self.activation.at(site), overwrites=site.inplace
        )
        return True

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"_open": defaultdict(list)}  # a copy is not running


def reroutings(net: nn.Module) -> list[Rerouting]:
    """Those that a net carries."""
    hooks = [hook for module in net.modules() for hook in module._forward_pre_hooks.values()]
    owners = [getattr(hook, "__self__", None) for hook in hooks]
    return [owner for owner in owners if isinstance(owner, Rerouting)]
