"""The two networks under audit, with what the battery may climb in their place.

All forms are made here, once, and proved on the data of the audit: a network's lean form, its fold
where slopes would saturate it, and, where an activation has a jump, the network with a kernel at
the jump in its backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from retroact.activations.activation import Kernel
from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import without_slope
from retroact.activations.ramp import RELU
from retroact.auditing.numbers import Pair
from retroact.crafting.annealed import Annealed
from retroact.crafting.derived import Traced, TraceError, soften, trace_forward
from retroact.crafting.domain import domain_of
from retroact.crafting.expectation import Expectation
from retroact.crafting.float_twin import float_twin
from retroact.crafting.inner import OverOthers, OverSpread, end_inside, watch_inside
from retroact.crafting.oracle import Network, device_of, dtype_of, evaluating
from retroact.crafting.stand_ins import StandIn, Way, find_ways, fit_front, learn_reader
from retroact.crafting.threat import ThreatModel
from retroact.evaluation.evaluate import Examples
from retroact.evaluation.proof import Proved, leave_as_is, prove, prove_same
from retroact.retrofitting.folding import FoldError, fold
from retroact.retrofitting.sites import sites
from retroact.retrofitting.surgery import refit_sharing, retrofit
from retroact.spec import SpecError

N = TypeVar("N")
Build = Callable[[], nn.Module | None]
Schedule = tuple[Kernel, tuple[float, ...]]
KERNELS: tuple[Schedule, ...] = (
    ("sigmoid", (2.0, 3.0, 4.0, 5.0, 7.0, 9.0, 12.0, 16.0, 22.0, 30.0)),
    ("sigmoid", (1.5, 2.5, 4.0, 6.0, 10.0)),
    ("rectangle", (0.5, 1.0, 2.0)),
)
"""Kernels with their beta · kappa from the first steps of an attack to its last: wide, then
narrow."""

WIDTHS: tuple[tuple[float, ...], ...] = ((1.0, 0.3, 0.1), (1.0,), (0.3,), (0.1,))
"""Widths of difference quotients, as shares of the spread of what an activation sees: from the
first steps of an attack to its last, and each alone."""
_OF_JUMPS = {"gradient fidelity", "falling loss", "random directions"}
_MEASURED = 64  # images on which spreads are measured
_SURVEYED = 16  # images on which ways around what leaves torch are looked for

TRACE = "trace of its computation"
TWIN = "twin in floats"
OVER_SPREAD = "margin over the spread of the logits"
OVER_OTHERS = "rise among the other logits"
INNER = "network that ends in its inner scores"

OWN_JUMP = "jumprelu"  # what recognition calls a jump that a network's own code makes
_MANY = 1000  # what an audit asks of an image: always more than a proof costs


@dataclass(frozen=True)
class Climb:
    """What an attack runs `on`, whose gradients it takes where those are another network's
    (`source`, or what `make` gives, once it is needed), and the name of the kernel that they go
    through, if one."""

    on: Proved
    source: Proved | None = None
    kernel: str = ""
    make: Callable[[], Proved] | None = None

    def guide(self) -> Proved | None:
        """Whose gradients are taken; None: those of what it runs on."""
        return self.source if self.make is None else self.make()


@dataclass(frozen=True)
class Source:
    """A network to climb in the place of the one under audit: its kernel's `name`, and how to
    `make` it. It computes the same, unless it is `foreign`."""

    name: str
    make: Callable[[], Proved]
    foreign: bool = False


@dataclass(frozen=True)
class Subject:
    """A network under audit, `net`, with what the battery may climb instead of it.

    `folded` computes the same without slopes (the net itself where there are none or it does not
    fold); `other` is the network it is compared with; `sources` see a jump in their backward pass,
    or are a user's surrogate. `traced` is the network's own computation (None where it cannot be
    traced) and `derived` the sources that are made of it, for a network that nobody has described;
    `stand_ins` give gradients alone, around what leaves torch, and so does what is climbed
    `inside`, where the size of the logits leads astray. None of these where nothing is to be
    derived (`derives`). `alarms` are the titles of the indicators that fired on it, by itself or
    beside the other; `about` names what its attacks depend on, where they are filed.
    """

    net: Proved
    folded: Proved
    other: Proved
    sources: tuple[Source, ...] = ()
    traced: Network | None = None
    derived: tuple[Source, ...] = ()
    stand_ins: tuple[Source, ...] = ()
    inside: tuple[Source, ...] = ()
    alarms: tuple[str, ...] = ()
    derives: bool = True
    about: str = ""

    @property
    def climbs(self) -> list[Climb]:
        """What an attack may be run on, the likeliest first: through the kernels of its own spec,
        or the folded net where it has none; then scores inside that decide alike, where there are
        any, and what no size of the logits can mislead, where they do; then through differences,
        and where an alarm fired through all that was derived."""
        first: list[Source | None] = [*self.sources] or [None]
        derived = (*self.derived, *self.stand_ins) if self.is_baffling else self.derived[:1]
        return [self.through(s) for s in (*first, *self.answers_misled, *derived)]

    @property
    def answers_misled(self) -> tuple[Source, ...]:
        """What no size of the logits can mislead, where it misled their margin; the scores inside
        in any case, as what little is added to them is missed by an alarm."""
        return self.inside if "misled margin" in self.alarms else self.inner

    @property
    def inner(self) -> tuple[Source, ...]:
        """The network that ends in scores inside that decide alike, where there are any."""
        return tuple(source for source in self.inside if source.name == INNER)

    @property
    def is_baffling(self) -> bool:
        """Whether an alarm fired that no kernel of its own spec answers."""
        known: set[str] = _OF_JUMPS if self.sources else set()
        return bool(set(self.alarms) - known)

    @property
    def computed(self) -> tuple[Network | None, Network | None]:
        """The network's own computation, and that up to inner scores that decide alike where more
        than a scale follows; None for what there is not."""
        inner = [source.make().network for source in self.inner]
        return self.traced, inner[0] if inner else None

    @property
    def draws(self) -> bool:
        """Whether the network draws at random, so that its mean is what is attacked."""
        return isinstance(self.net.network, Expectation)

    def through(self, source: Source | None) -> Climb:
        """What an attack along `source` (None: the folded net) is run on: a source that computes
        the same decides too, which is cheaper; of a `foreign` one only the gradients are taken."""
        if source is None:
            return Climb(self.folded)
        if source.foreign:
            return Climb(self.net, source.make(), source.name)
        return Climb(source.make(), kernel=source.name)

    def source(self, kernel: str) -> Source | None:
        """The source with a kernel of this name; None for the name of none."""
        every = (*self.sources, *self.derived, *self.stand_ins, *self.inside)
        return next((source for source in every if source.name == kernel), None)


def prepare(
    before: Network,
    after: Network,
    data: Examples,
    threat: ThreatModel,
    surrogate: Network | None = None,
    kernels: Sequence[Schedule] = KERNELS,
    seed: int = 0,
) -> Pair[Subject]:
    """Both networks of an audit, with kernels and folds derived from their own specs. All copies
    are made and proved here, before two threads run them.

    `surrogate` is a user's own network to climb in the place of `after`, for a change without a
    spec. Without `kernels` nothing is derived at all.
    """
    ask = partial(prove, images=data.images, index=data.index, threat=threat)
    domain = domain_of(data)
    old = ask(before, passes=_MANY, domain=domain, seed=seed)
    new, *own = (
        ask(net, passes=_MANY, domain=domain, seed=seed, like=old)
        for net in (after, surrogate)
        if net is not None
    )
    old, new = (_dress_own_jumps(on, data, threat) for on in (old, new))
    folded = _fold(old, data, threat), _fold(new, data, threat)
    derived = [_derive(on, data, threat) if kernels else _NOTHING for on in (old, new)]
    around = [_stand_in(on, data, threat, seed) if kernels else () for on in (old, new)]
    pair = Pair(
        Subject(old, folded[0], new, **derived[0]._asdict()),
        Subject(new, folded[1], old, **derived[1]._asdict()),
    )
    pair = Pair(
        *(replace(s, stand_ins=a, derives=bool(kernels)) for s, a in zip(pair, around, strict=True))
    )
    if own:
        theirs = Source("your surrogate", partial(_give, own[0]), foreign=True)
        return Pair(pair.before, replace(pair.after, sources=(theirs,)))
    return Pair(
        replace(pair.before, sources=_make_sources(folded[0], kernels)),
        replace(pair.after, sources=_make_sources(folded[1], kernels)),
    )


def prepare_writable(
    network: Network, like: Subject, data: Examples, threat: ThreatModel
) -> Subject:
    """A network to which one happens to `like`'s, to be attacked as that is: nothing in it is a
    copy, so that what is written to the network's weights is seen wherever it is climbed."""
    on = leave_as_is(network)
    made = _derive(on, data, threat)._asdict()
    sources = () if any(s.foreign for s in like.sources) else _make_sources(on, KERNELS)
    return Subject(on, on, like.other, sources, **made, alarms=like.alarms)


def _dress_own_jumps(on: Proved, data: Examples, threat: ThreatModel) -> Proved:
    """A network whose own code jumps (x[x <= t] = 0), dressed as the retrofit that it is, so that
    kernels can see it.

    As it is where it has no such sites, carries a retrofit, or the dressed form is not proved to
    compute the same.
    """
    if not isinstance(on.lean, nn.Module) or getattr(on.lean, "retrofit", None) is not None:
        return on
    example = data.images[:2].to(device_of(on.lean), dtype_of(on.lean) or data.images.dtype)
    try:
        calls = sites(on.lean, example, also=(OWN_JUMP,))
        if not any(site.own is not None and site.own.jump for site in calls):
            return on
        each = PerSite(tuple(without_slope(site.own or RELU) for site in calls))
        dressed = retrofit(on.lean, each, also=(OWN_JUMP,), example=example)
    except Exception:
        # sealed, not to be replaced, or whatever a stranger's code raises on what surgery hands it:
        # it is attacked without kernels
        return on
    where, domain = (data.images, data.index, threat), domain_of(data)
    same = prove_same(on.network, dressed, *where, domain=domain, gradients=False)
    return replace(on, lean=dressed) if same else on


def _fold(on: Proved, data: Examples, threat: ThreatModel) -> Proved:
    """The network without its slopes; as it is where it has none, does not fold, or its fold is not
    proved."""
    net = on.network
    if getattr(net, "retrofit", None) is None or not isinstance(net, nn.Module):
        return on
    try:
        folded = fold(net, scaled=False)
    except FoldError:
        return on
    scale: float = folded.logit_scale  # type: ignore[assignment]
    where, domain = (data.images, data.index, threat), domain_of(data)
    if scale == 1.0 or not prove_same(net, folded, *where, scale=scale, domain=domain):
        return on
    lean = prove(folded, *where, passes=_MANY, domain=domain, like=on)
    return Proved(net, lean.lean, lean.form, scale, partial(_give, folded))


def _give(network: N) -> N:
    return network


# -------------------------------------------------------------------------- traced, not described


class _Derived(NamedTuple):
    """What a `Subject` has of its network's computation."""

    traced: Network | None = None
    derived: tuple[Source, ...] = ()
    inside: tuple[Source, ...] = ()


def _derive(on: Proved, data: Examples, threat: ThreatModel) -> _Derived:
    """What the network computes, traced, and the sources made of it; nothing but what is climbed
    inside where it cannot be traced or is not proved to compute the same. Of a quantised one, its
    twin in floats."""
    net, dress = _undress(on.network)
    images = data.images[:_MEASURED].to(device_of(net))
    with evaluating(net):
        twin = float_twin(net, images)
    if twin is not None:
        floats = leave_as_is(dress(twin))
        found = (Source(TWIN, partial(_give, floats), foreign=True),)
        return _Derived(derived=found, inside=_find_inside(twin, images, dress))
    graph = _trace_same(on, data, threat, dress)
    if graph is None:
        return _Derived(inside=_find_inside(net, images, dress))
    sources = (Source(_name_widths(w), _Softening(on, graph, images, w, dress)) for w in WIDTHS)
    traced = dress(graph)
    return _Derived(
        traced,
        (*sources, Source(TRACE, partial(_run_on, on, traced))),
        _find_inside(net, images, dress, graph),
    )


def _trace_same(
    on: Proved, data: Examples, threat: ThreatModel, dress: Callable[[nn.Module], Any]
) -> Traced | None:
    """The trace of a network, where there is one that is proved to compute the same."""
    net, _ = _undress(on.network)
    try:
        graph = trace_forward(net, data.images[:_MEASURED])
    except TraceError:
        return None
    where = data.images, data.index, threat
    same = prove_same(on.network, dress(graph), *where, domain=domain_of(data), gradients=False)
    return graph if same else None


def _find_inside(
    net: Network,
    images: Tensor,
    dress: Callable[[nn.Module], Any],
    graph: Traced | None = None,
) -> tuple[Source, ...]:
    """What no size of the logits can mislead: made of the logits, and of scores inside that decide
    alike, where there are any, in the trace or, without one, as the network runs."""
    made: dict[str, Build] = {
        OVER_SPREAD: partial(OverSpread, net),
        OVER_OTHERS: partial(OverOthers, net),
    }
    look = partial(watch_inside, net) if graph is None else partial(end_inside, graph)
    with evaluating(net):
        if look(images) is not None:
            made[INNER] = partial(look, images)
    return tuple(Source(name, _Inside(build, dress), foreign=True) for name, build in made.items())


@dataclass(frozen=True, eq=False)
class _Inside:
    """Makes a network that gives other logits, once."""

    build: Build
    dress: Callable[[nn.Module], nn.Module]

    def __call__(self) -> Proved:
        return self._made

    def __reduce__(self) -> tuple[type[_Inside], tuple[Any, ...]]:
        # what was made of a trace is made anew in another process
        return _Inside, (self.build, self.dress)

    @cached_property
    def _made(self) -> Proved:
        built = self.build()
        assert built is not None, "it was asked when the source was made"
        return leave_as_is(self.dress(built))


_NOTHING = _Derived()


def _undress(net: Network) -> tuple[Network, Callable[[nn.Module], nn.Module]]:
    """A network without the mean over its draws, and what puts that on again."""
    if isinstance(net, Expectation):
        return net.net, partial(Expectation, draws=net.draws, seed=net.seed)
    return net, _give


def _run_on(on: Proved, lean: Network) -> Proved:
    return replace(on, lean=lean, form=None, scale=1.0, instead=None)


def _name_widths(widths: tuple[float, ...]) -> str:
    return f"difference quotient, h = {', '.join(f'{w:g}' for w in widths)}"


@dataclass(frozen=True, eq=False)
class _Softening:
    """Makes the network with differences over one width after the other, from the first on."""

    on: Proved
    graph: Traced
    images: Tensor
    widths: tuple[float, ...]
    dress: Callable[[nn.Module], nn.Module]

    def __call__(self) -> Proved:
        return _run_on(self.on, self._annealed)

    @cached_property
    def _annealed(self) -> Network:
        forms = [self.dress(soften(self.graph, self.images, w)) for w in self.widths]
        return forms[0] if len(forms) == 1 else Annealed(forms)


# --------------------------------------------------------------------- neither described nor traced


def _stand_in(on: Proved, data: Examples, threat: ThreatModel, seed: int) -> tuple[Source, ...]:
    """Sources around what leaves torch, before its last entries and behind its first exits."""
    net, dress = _undress(on.network)
    shown = partial(_Around, net, dress, data, threat, seed)
    return tuple(
        Source(_name_stand_in(way, fitted), shown(way, fitted), foreign=True)
        for way in find_ways(net, data.images[:_SURVEYED])
        for fitted in (False, True)
        if (way.changed and way.single if fitted else way.alike)
    )


def _name_stand_in(way: Way, fitted: bool) -> str:
    front = "fitted map" if fitted else "straight-through identity"
    if not way.unread:
        return f"{front} {way}"
    return f"nearest images {way}" + (f", {front} in front" if way.changed else "")


@dataclass(frozen=True, eq=False)
class _Around:
    """Makes a network with a stand-in for its front end, once."""

    net: Any
    dress: Callable[[nn.Module], nn.Module]
    data: Examples
    threat: ThreatModel
    seed: int
    way: Way
    fitted: bool

    def __call__(self) -> Proved:
        return self._made

    @cached_property
    def _made(self) -> Proved:
        guide = self._fit() if self.fitted else None
        reader = learn_reader(self.net, self.way, self.data.images) if self.way.unread else None
        return leave_as_is(self.dress(StandIn(self.net, self.way, guide, reader)))

    def _fit(self) -> nn.Module | None:
        x, index = self.data.images[:_MEASURED], self.data.index[:_MEASURED]
        domain = domain_of(self.data)
        return fit_front(self.net, self.way, x, index, self.threat, domain, self.seed)


# ----------------------------------------------------------------------------------------- kernels


Smoothing = Callable[[float, Kernel], Any]
"""The activation with a kernel of some sharpness at its jump."""


def _make_sources(on: Proved, kernels: Sequence[Schedule]) -> tuple[Source, ...]:
    """Kernels at the jumps of a network that a retrofit's spec knows; none where it has no jump."""
    own = getattr(on.lean, "retrofit", None)
    if not isinstance(on.lean, nn.Module) or own is None or not own.activation.jump:
        return ()
    smoothing: Smoothing = own.activation.smoothed
    try:
        for kernel, widths in kernels[:1]:
            smoothing(widths[0], kernel)
    except SpecError:
        return ()  # one of somebody's own that does not say where it jumps: differences will do
    anneal = partial(_Annealing, on, on.lean, partial(_undo_folds, on), smoothing)
    return tuple(Source(_name_kernel(*schedule), anneal(schedule)) for schedule in kernels)


def _undo_folds(on: Proved) -> Any:
    """The network itself; where its own code jumps, the dressed form, which alone takes kernels."""
    whole = on.fallback
    return on.lean if getattr(whole, "retrofit", None) is None else whole


def _name_kernel(kernel: Kernel, widths: tuple[float, ...]) -> str:
    return f"{kernel} kernel, beta kappa = {', '.join(f'{w:g}' for w in widths)}"


@dataclass(frozen=True, eq=False)
class _Annealing:
    """Makes `net`, which computes what `on` does, with one kernel after the other, from the first
    on; the nets are made once and share their weights. `bare` makes it without the lean form."""

    on: Proved
    net: nn.Module
    bare: Callable[[], Any]
    smoothing: Smoothing
    schedule: Schedule

    def __call__(self) -> Proved:
        return replace(self.on, lean=Annealed(self._lean), instead=self._instead)

    def _instead(self) -> Annealed:
        return Annealed(self._whole)

    @cached_property
    def _lean(self) -> list[nn.Module]:
        return self._through(self.net)

    @cached_property
    def _whole(self) -> list[nn.Module]:
        return self._through(self.bare())

    def _through(self, net: nn.Module) -> list[nn.Module]:
        kernel, widths = self.schedule
        return [refit_sharing(net, self.smoothing(width, kernel)) for width in widths]
