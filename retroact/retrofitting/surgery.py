"""Surgery: a copy of a net in which chosen activation calls compute another activation.

There are three ways to put an activation in, tried in this order:
    swap      the net traces, and every site is a module of its own called once: replace the modules
    graph     the net traces: replace each call in its torch.fx graph
    reroute   it does not trace: catch the calls while it runs
The first two keep the net fast and exportable. Both must agree with the third, bit for bit, on the
example under stand-in activations of different slopes; so a module that is shared, or a call that
overwrites its input, cannot slip through. Whatever way was taken, the result is surveyed again, and
a site that was found but not replaced is a `CoverageError`, never a quiet gap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from os import PathLike
from typing import Any

import torch
from torch import nn

from retroact.activations.activation import Activation
from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import SReLU, without_slope
from retroact.activations.ramp import RELU
from retroact.activations.site import Site
from retroact.doors import named
from retroact.ground import neutral
from retroact.retrofitting.copying import copied
from retroact.retrofitting.examples import Example, example_for, fresh
from retroact.retrofitting.installed import Installed, installed
from retroact.retrofitting.recognition import COMPOSED, KINDS
from retroact.retrofitting.rerouting import Rerouting, reroutings
from retroact.retrofitting.selection import select
from retroact.retrofitting.sites import NoSitesError, Survey, counted, survey
from retroact.retrofitting.tracing import keep_attributes, rewritten, traced
from retroact.retrofitting.watching import trial
from retroact.spec import show, spec


class CoverageError(ValueError):
    """Some of the chosen activation calls were not replaced; `missed` are the names of their
    sites."""

    def __init__(self, missed: tuple[str, ...], found: int) -> None:
        super().__init__(missed, found)  # what pickle calls again, so that it crosses processes
        self.missed = missed
        self.found = found

    def __str__(self) -> str:
        return (
            f"replaced {self.found - len(self.missed)} of {self.found} activation calls; missed"
            f" {', '.join(self.missed)}: they happen where Python cannot reach (a fused kernel,"
            " compiled code, an operation that is no torch function) or in several steps; write"
            f" them as F.relu, or leave them as they are with allow={self.missed!r}"
        )


@spec
class Retrofit:
    """Which activation a net received, and where: called on the net, it gives the retrofitted copy.

    `sites` selects by name, glob or order; `also` names kinds beyond ReLU that are replaced;
    `allow` names sites (or globs) that may stay as they are where they cannot be replaced.
    """

    activation: Activation
    sites: str = "*"
    also: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()

    @neutral()
    def __call__(self, net: nn.Module, example: Example | None = None) -> nn.Module:
        """The retrofitted copy; raises as `retrofit` says."""
        _refuse_twice(net)
        found = survey(net, example, also=self.also)
        if not found.sites:
            raise NoSitesError(_nothing_to_replace(net, found))
        chosen = _numbered(select(found.sites, self.sites))
        _check_count(self.activation, chosen)
        made = _placed(net, found, chosen, self, example_for(net, example))
        _check_coverage(survey(made, example, also=self.also), found, chosen, self.allow)
        stay = (
            Counter(counted(found.sites))
            - Counter(counted(chosen))
            + Counter(counted(found.left_alone))
        )
        keep_attributes(made, {"retrofit": self, "left_alone": dict(stay.most_common())})
        return made


def retrofit(
    net: str | PathLike[str] | nn.Module,
    activation: Activation | type[Activation] | str,
    *,
    sites: str | int | Iterable[str | int] = "*",
    example: Example | None = None,
    also: Iterable[str] = (),
    allow: Iterable[str] = (),
) -> nn.Module:
    """A copy of `net` in which the chosen activation calls compute `activation`; the net stays as
    it is.

    Both may be texts: retrofit("lenet-mnist", "JumpReLU(1.0)").
    `sites` selects by name, glob ("layer1.*"), order (0, -1, "0:2") or several of these; `example`
    is an input or a tuple of inputs, needed where the net has no `shape`; `also=("gelu",)` replaces
    further kinds; `allow` names sites that may stay. Parameters, buffers, mode and the names in the
    state_dict are the net's; a classifier around the net is copied with its type and attributes; a
    compiled net is retrofitted as the net that was compiled. The copy's `.retrofit` is the
    `Retrofit` that made it, its `.left_alone` counts the activation calls that stayed, by kind. It
    acts alike in train and eval mode.

    Raises NoSitesError where there is nothing to replace, CoverageError where a chosen call could
    not be, ValueError for a sealed (TorchScript, quantised) or an already retrofitted net, and a
    selection that is empty, TypeError for what is no module.
    """
    kinds, left = (tuple((names,) if isinstance(names, str) else names) for names in (also, allow))
    return Retrofit(activation, _as_text(sites), kinds, left)(named(net), example)  # type: ignore[arg-type]


@neutral()
def refit(net: nn.Module, activation: Activation | type[Activation] | str) -> nn.Module:
    """A copy of a retrofitted net with another activation at the same sites, without surveying it
    again."""
    activation = Retrofit(activation).activation  # type: ignore[arg-type]
    if getattr(net, "retrofit", None) is None:
        raise ValueError(
            f"{type(net).__name__} carries no retrofit; use retrofit(net, {show(activation)})"
        )
    made = _dressed(copied(net), activation)
    for rerouting in reroutings(made):
        rerouting.activation = activation
    keep_attributes(made, {"retrofit": replace(net.retrofit, activation=activation)})  # type: ignore[type-var]
    return made


# ---------------------------------------------------------------------------------------- the doors


def _as_text(sites: str | int | Iterable[str | int]) -> str:
    if isinstance(sites, str):
        return sites
    parts = [sites] if isinstance(sites, int) else list(sites)
    # a slice, as "0" may be the name of a module
    return ",".join(f"{p}:{p + 1 or ''}" if isinstance(p, int) else p for p in parts)


def _refuse_twice(net: nn.Module) -> None:
    if isinstance(net, nn.Module) and installed(net):
        raise ValueError(
            f"the net already carries {show(getattr(net, 'retrofit', None))}; retrofit the net it"
            " was made from, which is as it was, or use refit(net, activation) for another"
            " activation at the same sites"
        )


def _nothing_to_replace(net: nn.Module, found: Survey) -> str:
    others = {site.kind for site in found.left_alone}
    named, by_hand = ", ".join(sorted(others & KINDS)), ", ".join(sorted(others - KINDS))
    cure = f"; it calls {named}: name them in also= (--also) to replace them" if named else ""
    cure += (
        f"; it has {by_hand} written by hand: write F.relu there to have it replaced"
        if by_hand
        else ""
    )
    return f"{type(net).__name__} calls no ReLU, so there is nothing to replace{cure}"


def _numbered(chosen: tuple[Site, ...]) -> tuple[Site, ...]:
    return tuple(replace(site, order=i) for i, site in enumerate(chosen))


def _check_count(activation: Activation, chosen: tuple[Site, ...]) -> None:
    if activation.places not in (None, len(chosen)):
        raise ValueError(
            f"{type(activation).__name__} has {activation.places} activations for {len(chosen)}"
            f" chosen sites ({', '.join(s.name for s in chosen)}); give one for each"
        )


def _check_coverage(
    after: Survey, found: Survey, chosen: tuple[Site, ...], allow: tuple[str, ...]
) -> None:
    """Every chosen site is called as an installed one, once, and no call is left that nobody left
    there."""
    names = {site.name for site in chosen}
    missed = [n for n in names if Counter(after.installed)[n] != 1]
    left = {site.name for site in found.sites} - names
    extra = max(0, len(after.sites) - len(left) - len(missed))
    not_allowed = [n for n in missed if not any(fnmatchcase(n, pattern) for pattern in allow)]
    if not_allowed or extra:
        in_order = tuple(s.name for s in chosen if s.name in not_allowed)
        raise CoverageError(in_order or tuple(s.name for s in after.sites[-extra:]), len(chosen))
    if len(missed) == len(chosen):
        raise NoSitesError(
            f"every chosen site stays as it is under allow={allow}: nothing was replaced"
        )


# ------------------------------------------------------------------------------------ three ways in


def _placed(
    net: nn.Module, found: Survey, chosen: tuple[Site, ...], wanted: Retrofit, inputs: Any
) -> nn.Module:
    """A copy of the net, wrappers and all, with the activations in."""
    made = copied(net)
    parents = [made]
    for _ in range(found.depth):
        parents.append(parents[-1].get_submodule("module"))
    inner = _rewritten(parents[-1], found, chosen, wanted, _inner_inputs(net, found.depth, inputs))
    inner = _dressed(inner, wanted.activation)
    if found.depth == 0:
        return inner
    parents[-2].module = inner
    return made


def _inner_inputs(net: nn.Module, depth: int, inputs: Any) -> Any:
    """What reaches the net inside its wrappers, such as normalised images; None if it comes by
    keyword."""
    if depth == 0:
        return inputs
    outer = copied(net).eval()
    seen: list[Any] = []
    inner = outer.get_submodule(".".join(["module"] * depth))
    with trial():
        inner.register_forward_pre_hook(
            lambda _, args, kw: seen.append(None if kw else args), with_kwargs=True
        )
        outer(*fresh(inputs))
    return seen[0] if len(seen) == 1 else None


def _rewritten(
    net: nn.Module, found: Survey, chosen: tuple[Site, ...], wanted: Retrofit, inputs: Any
) -> nn.Module:
    graph = None if inputs is None else traced(copied(net))
    if graph is not None:
        stand_in = replace(wanted, activation=_stand_ins(chosen))
        expected = _result(_reroute(copied(net), found, chosen, stand_in), inputs)
        for overwrites in (False, True):
            put_in = _to_install(chosen, stand_in.activation, overwrites=overwrites)
            for made in (
                _swap(copied(net), found, put_in),
                _in_graph(copied(graph), found, put_in, inputs),
            ):
                if made is not None and _same(_result(made, inputs), expected):
                    return made
    return _reroute(net, found, chosen, wanted)


def _stand_ins(chosen: tuple[Site, ...]) -> PerSite:
    """Slopes around 1 keep deep nets finite, and no two neighbours are alike, so that order
    shows."""
    if any(site.kind == COMPOSED for site in chosen):
        # made in several steps: rerouting leaves it, so the same own activation must stand here
        return PerSite(tuple(without_slope(site.own or RELU) for site in chosen))
    return PerSite(
        tuple(SReLU(1.0 + (-1) ** i * (0.1 + 0.02 * (i % 5))) for i in range(len(chosen)))
    )


def _to_install(
    chosen: tuple[Site, ...], activation: Activation, *, overwrites: bool
) -> dict[str, Installed]:
    return {
        s.name: Installed(s, activation.at(s), overwrites=overwrites and s.inplace) for s in chosen
    }


def _dressed(made: nn.Module, activation: Activation) -> nn.Module:
    """Gives every site its activation, on the device of the net."""
    device = next((p.device for p in made.parameters()), None)
    for module in installed(made).values():
        module.become(activation.at(module.site))
        module.to(device)
    return made


def _swap(net: nn.Module, found: Survey, put_in: dict[str, Installed]) -> nn.Module | None:
    calls = Counter(site.module for site in found.sites)
    for module in put_in.values():
        path = module.site.module
        if not path or calls[path] != 1:
            return None
        net.set_submodule(path, module)
    return net


def _in_graph(
    net: Any, found: Survey, put_in: dict[str, Installed], inputs: Any
) -> nn.Module | None:
    return net if rewritten(net, put_in, found.sites, inputs) else None


def _reroute(
    net: nn.Module, found: Survey, chosen: tuple[Site, ...], wanted: Retrofit
) -> nn.Module:
    put_in = _to_install(chosen, wanted.activation, overwrites=True)
    left = {site.name for site in (*found.sites, *found.on_pixels)} - put_in.keys()
    return Rerouting(put_in, left, wanted.activation, wanted.sites, wanted.also).attach(net)


def _result(net: nn.Module, inputs: Any) -> list[Any]:
    """What a copy in eval mode gives, leaf by leaf; nothing where it fails."""
    try:
        made = copied(net).eval()
        with trial():
            return _leaves(made(*fresh(inputs)))
    except Exception:  # a graph may have traced and still not run
        return []


def _leaves(out: Any) -> list[Any]:
    """The tensors and numbers of a result, and the containers around them: a graph returns no
    ModelOutput."""
    if isinstance(out, Mapping):
        parts: list[Any] = [*out, *out.values()]
    elif isinstance(out, list | tuple):
        parts = list(out)
    elif hasattr(out, "__dict__") and not isinstance(out, torch.Tensor):
        parts = list(vars(out).values())
    else:
        return [out]
    return [type(out).__qualname__, *(leaf for part in parts for leaf in _leaves(part))]


def _same(one: list[Any], other: list[Any]) -> bool:
    return bool(one) and len(one) == len(other) and all(map(_equal, one, other))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
