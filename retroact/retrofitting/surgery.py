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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from math import isfinite
from os import PathLike
from typing import TYPE_CHECKING, cast

import torch
from torch import fx, nn

from retroact.activations.activation import Activation
from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import SReLU, without_slope
from retroact.activations.ramp import RELU
from retroact.activations.site import RELUS, Site
from retroact.doors import named
from retroact.ground import neutral
from retroact.retrofitting.copying import deep_copy, shadow
from retroact.retrofitting.examples import Example, Inputs, example_for, fresh
from retroact.retrofitting.installed import Installed, installed
from retroact.retrofitting.recognition import COMPOSED, KINDS
from retroact.retrofitting.rerouting import Rerouting, reroutings
from retroact.retrofitting.selection import select
from retroact.retrofitting.sites import NoSitesError, Survey, count_kinds, survey
from retroact.retrofitting.tracing import keep_attributes, rewrite, trace
from retroact.retrofitting.watching import trial
from retroact.shown import as_html
from retroact.spec import show, spec, take

if TYPE_CHECKING:
    from retroact.figures import Figure, Function


class CoverageError(ValueError):
    """Some of the chosen activation calls were not replaced; `missed` are the names of their
    sites."""

    def __init__(self, missed: tuple[str, ...], chosen: int) -> None:
        super().__init__(missed, chosen)  # what pickle calls again, so that it crosses processes
        self.missed = missed
        self.chosen = chosen

    def __str__(self) -> str:
        return (
            f"replaced {self.chosen - len(self.missed)} of {self.chosen} activation calls; missed"
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
        seen = survey(net, example, also=self.kinds)
        if not seen.sites:
            raise NoSitesError(_nothing_to_replace(net, seen))
        chosen = _number(select(seen.sites, self.sites))
        _check_count(self.activation, chosen)
        _check_kinds(self.activation, chosen, seen)
        copy = _install(net, seen, chosen, self, example_for(net, example))
        _check_coverage(survey(copy, example, also=self.kinds), seen, chosen, self.allow)
        stay = (
            Counter(count_kinds(seen.sites))
            - Counter(count_kinds(chosen))
            + Counter(count_kinds(seen.left_alone))
        )
        keep_attributes(copy, {"retrofit": self, "left_alone": dict(stay.most_common())})
        return copy

    def _repr_html_(self) -> str:
        head = ("activation", "at sites", "in the place of", "may stay")
        kinds = ", ".join(("relu", *self.kinds))
        row = (show(self.activation), self.sites, kinds, ", ".join(self.allow) or "none")
        return as_html(str(self), head, [row])

    def plot(self) -> Figure:
        """The activation beside the ReLU that it stands for, one panel for each site where they
        differ. Raises ValueError for one that is no function of one number."""
        from retroact.figures import functions  # and with it matplotlib

        each = getattr(self.activation, "activations", (self.activation,))
        return functions([_draw(one) for one in each], f"at sites {self.sites}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds beyond ReLU that are replaced: those of `also`, and those that the activation is
        written for."""
        others = (k for k in self.activation.replaces if k not in (*self.also, *RELUS))
        return (*self.also, *others)


def _draw(activation: Activation) -> Function:
    """The activation over a range that has its threshold and its cap in it."""
    from retroact.figures import Function

    ramp = activation.ramp
    ends = (ramp.kappa, ramp.cap) if ramp is not None else ()
    most = max([1.5, *(1.5 * abs(end) for end in ends if end is not None and isfinite(end))])
    z = torch.linspace(-most, most, 601)[None]  # one example, whose entries may compete
    try:
        y = activation(z)
        alone = y.shape == z.shape and torch.equal(activation(z[:, 450:]), y[:, 450:])
    except (TypeError, ValueError, IndexError, RuntimeError):
        alone = False
    if not alone:
        raise ValueError(
            f"expected an activation that is a function of one number, to draw it, got"
            f" {show(activation)}, which depends on its site or on other entries"
        )
    return Function(show(activation), z[0].tolist(), y[0].tolist())


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
    kinds, may_stay = (tuple((n,) if isinstance(n, str) else n) for n in (also, allow))
    wanted = Retrofit(take(activation, Activation), _as_text(sites), kinds, may_stay)
    return wanted(cast(nn.Module, named(net)), example)


@neutral()
def refit(net: nn.Module, activation: Activation | type[Activation] | str) -> nn.Module:
    """A copy of a retrofitted net with another activation at the same sites, without surveying it
    again."""
    activation = take(activation, Activation)
    if getattr(net, "retrofit", None) is None:
        raise ValueError(
            f"{type(net).__name__} carries no retrofit; use retrofit(net, {show(activation)})"
        )
    return _become(deep_copy(net), activation)


@neutral()
def refit_sharing(net: nn.Module, activation: Activation) -> nn.Module:
    """`refit` without copying the weights: both nets have the same tensors, as attacks change
    none."""
    return _become(shadow(net), activation)


def _become(net: nn.Module, activation: Activation) -> nn.Module:
    """The net itself, a copy of a retrofitted one, with another activation from now on."""
    _put_in(net, activation)
    for rerouting in reroutings(net):
        rerouting.activation = activation
    before = net.retrofit
    assert isinstance(before, Retrofit)
    keep_attributes(net, {"retrofit": replace(before, activation=activation)})
    return net


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


def _nothing_to_replace(net: nn.Module, seen: Survey) -> str:
    others = {site.kind for site in seen.left_alone}
    kinds, by_hand = ", ".join(sorted(others & KINDS)), ", ".join(sorted(others - KINDS))
    cure = f"; it calls {kinds}: name them in also= (--also) to replace them" if kinds else ""
    cure += (
        f"; it has {by_hand} written by hand: write F.relu there to have it replaced"
        if by_hand
        else ""
    )
    return f"{type(net).__name__} calls no ReLU, so there is nothing to replace{cure}"


def _number(chosen: tuple[Site, ...]) -> tuple[Site, ...]:
    return tuple(replace(site, order=i) for i, site in enumerate(chosen))


def _check_count(activation: Activation, chosen: tuple[Site, ...]) -> None:
    if activation.places not in (None, len(chosen)):
        raise ValueError(
            f"{type(activation).__name__} has {activation.places} activations for {len(chosen)}"
            f" chosen sites ({', '.join(s.name for s in chosen)}); give one for each"
        )


def _check_kinds(activation: Activation, chosen: tuple[Site, ...], seen: Survey) -> None:
    """What is written for some kinds, and finds none of one, would change nothing there."""
    there = {kind for site in chosen for kind in site.kinds}
    missing = [kind for kind in activation.replaces if kind not in there]
    if missing:
        others = sorted(there | {site.kind for site in (*seen.sites, *seen.left_alone)})
        raise NoSitesError(
            f"{show(activation)} is for {', '.join(missing)}, and no chosen site is one; the net"
            f" calls {', '.join(others)}"
        )


def _check_coverage(
    after: Survey, before: Survey, chosen: tuple[Site, ...], allow: tuple[str, ...]
) -> None:
    """Every chosen site is called as an installed one, once, and no call is left that nobody left
    there."""
    names = {site.name for site in chosen}
    missed = [n for n in names if Counter(after.installed)[n] != 1]
    left = {site.name for site in before.sites} - names
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


def _install(
    net: nn.Module, seen: Survey, chosen: tuple[Site, ...], wanted: Retrofit, inputs: Inputs
) -> nn.Module:
    """A copy of the net, wrappers and all, with the activations in."""
    copy = deep_copy(net)
    parents = [copy]
    for _ in range(seen.depth):
        parents.append(parents[-1].get_submodule("module"))
    inner = _rewrite(parents[-1], seen, chosen, wanted, _inner_inputs(net, seen.depth, inputs))
    _put_in(inner, wanted.activation)
    if seen.depth == 0:
        return inner
    parents[-2].module = inner
    return copy


def _inner_inputs(net: nn.Module, depth: int, inputs: Inputs) -> Inputs | None:
    """What reaches the net inside its wrappers, such as normalised images; None if it comes by
    keyword."""
    if depth == 0:
        return inputs
    outer = deep_copy(net).eval()
    seen: list[Inputs | None] = []
    inner = outer.get_submodule(".".join(["module"] * depth))
    with trial():
        inner.register_forward_pre_hook(
            lambda _, args, kw: seen.append(None if kw else args), with_kwargs=True
        )
        outer(*fresh(inputs))
    return seen[0] if len(seen) == 1 else None


def _rewrite(
    net: nn.Module, seen: Survey, chosen: tuple[Site, ...], wanted: Retrofit, inputs: Inputs | None
) -> nn.Module:
    """The net with something installed at every chosen site, in the first way that holds."""
    graph = None if inputs is None else trace(deep_copy(net))
    if graph is not None and inputs is not None:
        stand_in = replace(wanted, activation=_stand_ins(chosen))
        expected = _run(_reroute(deep_copy(net), seen, chosen, stand_in), inputs)
        for overwrites in (False, True):
            put_in = _modules_for(chosen, stand_in.activation, overwrites=overwrites)
            for candidate in _put_in_copies(net, graph, seen, put_in, inputs):
                if candidate is not None and _same(_run(candidate, inputs), expected):
                    return candidate
    return _reroute(net, seen, chosen, wanted)


def _put_in_copies(
    net: nn.Module, graph: nn.Module, seen: Survey, put_in: dict[str, Installed], inputs: Inputs
) -> Iterator[nn.Module | None]:
    """The net with the modules in it, and its graph, which is made only where the net is not
    taken."""
    yield _swap(deep_copy(net), seen, put_in)
    yield _rewrite_graph(deep_copy(graph), seen, put_in, inputs)


def _stand_ins(chosen: tuple[Site, ...]) -> PerSite:
    """Slopes around 1 keep deep nets finite, and no two neighbours are alike, so that order
    shows."""
    if any(site.kind == COMPOSED for site in chosen):
        # made in several steps: rerouting leaves it, so the same own activation must stand here
        return PerSite(tuple(without_slope(site.own or RELU) for site in chosen))
    return PerSite(
        tuple(SReLU(1.0 + (-1) ** i * (0.1 + 0.02 * (i % 5))) for i in range(len(chosen)))
    )


def _modules_for(
    chosen: tuple[Site, ...], activation: Activation, *, overwrites: bool
) -> dict[str, Installed]:
    return {
        s.name: Installed(s, activation.at(s), overwrites=overwrites and s.inplace) for s in chosen
    }


def _put_in(net: nn.Module, activation: Activation) -> None:
    """Gives every site its activation, on the device of the net."""
    device = next((p.device for p in net.parameters()), None)
    for module in installed(net).values():
        module.become(activation.at(module.site))
        module.to(device)


def _swap(net: nn.Module, seen: Survey, put_in: dict[str, Installed]) -> nn.Module | None:
    calls = Counter(site.module for site in seen.sites)
    for module in put_in.values():
        path = module.site.module
        if not path or calls[path] != 1:
            return None
        net.set_submodule(path, module)
    return net


def _rewrite_graph(
    net: nn.Module, seen: Survey, put_in: dict[str, Installed], inputs: Inputs
) -> nn.Module | None:
    assert isinstance(net, fx.GraphModule)
    return net if rewrite(net, put_in, seen.sites, inputs) else None


def _reroute(net: nn.Module, seen: Survey, chosen: tuple[Site, ...], wanted: Retrofit) -> nn.Module:
    put_in = _modules_for(chosen, wanted.activation, overwrites=True)
    left = {site.name for site in (*seen.sites, *seen.on_pixels)} - put_in.keys()
    return Rerouting(put_in, left, wanted.activation, wanted.sites, wanted.kinds).attach(net)


def _run(net: nn.Module, inputs: Inputs) -> list[object]:
    """What a copy in eval mode gives, leaf by leaf; nothing where it fails."""
    try:
        copy = deep_copy(net).eval()
        with trial():
            return _leaves(copy(*fresh(inputs)))
    except Exception:  # a graph may have traced and still not run
        return []


def _leaves(out: object) -> list[object]:
    """The tensors and numbers of a result, and the containers around them: a graph returns no
    ModelOutput."""
    if isinstance(out, Mapping):
        parts: list[object] = [*out, *out.values()]
    elif isinstance(out, list | tuple):
        parts = list(out)
    elif hasattr(out, "__dict__") and not isinstance(out, torch.Tensor):
        parts = list(vars(out).values())
    else:
        return [out]
    return [type(out).__qualname__, *(leaf for part in parts for leaf in _leaves(part))]


def _same(leaves: list[object], expected: list[object]) -> bool:
    return bool(leaves) and len(leaves) == len(expected) and all(map(_equal, leaves, expected))


def _equal(leaf: object, expected: object) -> bool:
    if isinstance(leaf, torch.Tensor) and isinstance(expected, torch.Tensor):
        return torch.equal(leaf, expected)
    return type(leaf) is type(expected) and bool(leaf == expected)
