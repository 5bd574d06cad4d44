"""Sites: every call of an activation function that a forward pass makes, counted while it runs.

Counting `nn.ReLU` modules is not enough: one module may be called many times, and most calls are
functions. So a copy of the net runs on an example, and a dispatch mode sees every tensor operation
(`watching`), while hooks know which module is running, so that a call gets a name such as
"layer1.0.relu". `survey` lists what it saw; `sites` is the list of what can be replaced.

`recognition` says of one operation what it is: by name, or, where it is written by hand, by its
values. A clamp of the pixels before any layer ran (`clamp(0, 1)`, before or after normalising) is
no activation. The net itself never runs: its mode, hooks, buffers and gradients stay as they are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike

from torch import Tensor, nn

from retroact.activations.ramp import RELU
from retroact.activations.site import Site
from retroact.doors import named, noting_failure
from retroact.ground import neutral
from retroact.retrofitting.copying import deep_copy
from retroact.retrofitting.examples import Example, Inputs, example_for, fresh, unwrapped
from retroact.retrofitting.installed import installed
from retroact.retrofitting.recognition import COMPOSED, Call
from retroact.retrofitting.sealed import refuse_what_cannot_be_read
from retroact.retrofitting.watching import Functions, Probe, Whereabouts, activation_modules, trial


class NoSitesError(ValueError):
    """The net calls no activation that could be replaced."""


@dataclass(frozen=True)
class Survey:
    """What one forward pass called: `sites` can be replaced, `left_alone` are no ReLU and stay.

    `installed` names the calls of activations that a retrofit has already put in. `depth` is the
    number of wrappers with one `.module` (a classifier, DataParallel) around all of it; names start
    inside. `on_pixels` are clamps of the image before any layer ran, which are no activations.
    """

    sites: tuple[Site, ...]
    left_alone: tuple[Site, ...]
    installed: tuple[str, ...]
    depth: int
    on_pixels: tuple[Site, ...] = ()


def sites(
    net: str | PathLike[str] | nn.Module,
    example: Example | None = None,
    *,
    also: tuple[str, ...] = (),
) -> tuple[Site, ...]:
    """Every activation call of one eval forward pass that a retrofit can replace, in order.

    `example` is an input, or a tuple of inputs; by default seeded uniform noise of shape (2,
    *net.shape). `also` names kinds beyond ReLU to be counted: "gelu", "silu", …, and "jumprelu" for
    jumps of the net's own. Raises ValueError where the net says no shape and no example is given,
    and where the net is sealed (TorchScript, quantised, exported); TypeError for what is no module.
    """
    return survey(named(net), example, also=also).sites


def left_alone(net: nn.Module, example: Example | None = None) -> dict[str, int]:
    """How often one forward pass calls each kind of activation that a retrofit leaves: {"gelu":
    17}.

    Of a retrofitted net that is what its retrofit left, kinds and sites that were not chosen, as
    its `.left_alone` says; of any other net what `retrofit` would leave by default. Kinds are
    counted wherever they are called, so the sigmoid of a gate counts too. Raises as `sites` does.
    """
    left = (getattr(module, "left_alone", None) for module in unwrapped(net))
    by_retrofit = next((kinds for kinds in left if isinstance(kinds, dict)), None)
    return (
        count_kinds(survey(net, example).left_alone) if by_retrofit is None else dict(by_retrofit)
    )


def count_kinds(calls: tuple[Site, ...]) -> dict[str, int]:
    """How many calls there are of each kind, the most frequent first."""
    return dict(Counter(site.kind for site in calls).most_common())


@neutral()
def survey(net: nn.Module, example: Example | None = None, *, also: tuple[str, ...] = ()) -> Survey:
    """Runs a copy of the net on the example and lists the activation calls it makes."""
    refuse_what_cannot_be_read(net, also)
    work = deep_copy(net).eval()
    inputs = example_for(net, example)
    with noting_failure(inputs[0] if inputs else None):
        seen, on_pixels, put_in = _probe(work, inputs)
    if not seen and not put_in:  # a net of nothing but a ReLU on its input
        seen = [s for s in on_pixels if s.own == RELU]
    depth = _wrappers(work, [s.name for s in seen])
    prefix = len("module.") * depth
    inner = [replace(s, name=s.name[prefix:], module=s.module[prefix:]) for s in seen]
    chosen = [s for s in inner if s.kind in also or (s.own is not None and not s.own.jump)]
    return Survey(
        sites=tuple(replace(s, order=i) for i, s in enumerate(chosen)),
        left_alone=tuple(s for s in inner if s not in chosen),
        installed=tuple(put_in),
        depth=depth,
        on_pixels=tuple(replace(s, name=s.name.removeprefix("module." * depth)) for s in on_pixels),
    )


def _probe(net: nn.Module, inputs: Inputs) -> tuple[list[Site], list[Site], list[str]]:
    """The activation calls of a net that may be hooked at will, those on pixels, those of a
    retrofit by name."""
    seen: list[Site] = []
    on_pixels: list[Site] = []
    with trial():
        where, modules, (put_in, running) = Whereabouts(), activation_modules(net), _watch(net)
        where.attach(net)
        functions = Functions(where)

        def note(call: Call, _: Tensor, pixels: bool) -> None:
            if running:
                return
            module = where.path if where.path in modules else ""
            within, args = functions.running[-1] if call.by_value and not module else ("", ())
            argument = next(
                (i for i, a in enumerate(args) if a is call.z and call.kind != COMPOSED), None
            )
            name = within or where.name(call.kind, module)
            shape, calls = tuple(call.z.shape[1:]), on_pixels if pixels else seen
            calls.append(
                Site(name, len(seen), call.own, call.kind, module, shape, call.inplace, argument)
            )

        given = fresh(inputs)
        with functions, Probe(note, given):
            net(*given)
    return seen, on_pixels, put_in


def _watch(net: nn.Module) -> tuple[list[str], list[str]]:
    """Two lists that fill while the net runs: the names of the installed activations called, and of
    those running now."""
    called: list[str] = []
    running: list[str] = []

    def enter(name: str, *_: object) -> None:
        called.append(name)
        running.append(name)

    def leave(*_: object) -> None:
        running.pop()

    for name, module in installed(net).items():
        module.register_forward_pre_hook(partial(enter, name))
        module.register_forward_hook(leave, always_call=True)
    return called, running


def _wrappers(net: nn.Module, names: list[str]) -> int:
    """How many times all the calls lie inside one `.module`."""
    depth = 0
    for _ in list(unwrapped(net))[1:]:
        if not all(name.startswith("module." * (depth + 1)) for name in names):
            break
        depth += 1
    return depth
