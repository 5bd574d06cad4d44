"""The law of every spec in the package: it prints, reads back equal, and keeps its key."""

import dataclasses
import inspect
import pickle
import typing
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import retroact
from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import JumpReLU, SReLU
from retroact.attacks.pgd import PGD
from retroact.crafting.threat import Linf
from retroact.experiments.cell import Cell, Model
from retroact.nets.data import DataSlice
from retroact.nets.lenet_like import LeNetLike
from retroact.nets.zoo import Network
from retroact.retrofitting.surgery import Retrofit
from retroact.spec import SpecError, Within, key, known, parse, show
from retroact.training.recipes import Adversarial, MixedFGSM, Shifted, Standard

GOLDEN = Path(__file__).with_name("golden_specs.txt")


def specs() -> list[type]:
    # what a study measures is named in its store alone, nobody writes it down
    return [
        c for c in known() if c.__module__.startswith("retroact.") and "studies" not in c.__module__
    ]


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values that a field of this type takes."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        (bound,) = (b for b in inner[1:] if isinstance(b, Within))
        return bounded(inner[0], bound)
    if origin in (Union, UnionType):
        return st.one_of([st.none() if h is type(None) else values(h) for h in inner])
    if origin is Literal:
        return st.sampled_from(inner)
    if origin is tuple:
        return st.lists(values(inner[0]), min_size=1, max_size=3).map(tuple)
    plain = {
        bool: st.booleans(),
        int: st.integers(0, 99),
        float: st.floats(-9, 9),
        str: st.text(max_size=5),
    }
    return plain[hint]


def bounded(kind: type, bound: Within) -> st.SearchStrategy[Any]:
    low, high = max(bound.low, -99), min(bound.high, 99)
    if kind is int:
        return st.integers(int(low), int(high))
    pixels = st.integers(1, 254).map(lambda k: k / 255).filter(lambda v: v in bound)
    return st.floats(low, high, exclude_min=bound.above) | pixels


def strategy(cls: type) -> st.SearchStrategy[Any]:
    if cls.__name__ in SPECIAL:
        return SPECIAL[cls.__name__]
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: values(hints[f.name]) for f in dataclasses.fields(cls)}
    return st.builds(tried(cls), **fields).filter(lambda made: made is not None)


def tried(cls: type) -> Any:
    """`cls`, but None where the values do not go together (a check of the class over several
    fields)."""

    def make(**fields: Any) -> Any:
        try:
            return cls(**fields)
        except (SpecError, ValueError):
            return None

    return make


activations = st.builds(JumpReLU, st.floats(0, 9)) | st.builds(SReLU, st.floats(0.1, 99))
models = st.builds(Model, st.just("digits-cnn"), st.none() | activations, st.just("fc*"))
SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "Adversarial": st.builds(
        Adversarial, st.builds(Standard, st.integers(1, 99)), st.floats(0.1, 1)
    ),
    "Model": models,
    "ByKind": st.builds(lambda a: retroact.ByKind(("gelu",), (a,)), activations),
    "Cell": st.builds(
        Cell,
        models,
        st.just("digits[:9]"),
        st.builds(PGD, st.integers(1, 9)),
        st.just(Linf("8/255")),
    ),
    "DataSlice": st.builds(
        DataSlice, st.just("mnist"), start=st.integers(0, 9), stop=st.integers(10, 99)
    ),
    "Foolbox": st.builds(retroact.Foolbox, st.just("LinfPGD"), steps=st.integers(1, 9)),
    "Jump": st.builds(retroact.Jump, st.just(retroact.GELU()), st.floats(0, 9)),
    "MixedFGSM": st.builds(MixedFGSM, st.builds(Standard, st.integers(1, 99)), st.floats(0, 1)),
    "Network": st.builds(Network, st.just(LeNetLike()), st.just("mnist"), st.just((1, 28, 28))),
    "PerSite": st.lists(activations, min_size=1, max_size=3).map(lambda a: PerSite(tuple(a))),
    "Retrofit": st.builds(Retrofit, activations, st.just("0:2")),
    "Shifted": st.builds(
        Shifted, st.builds(Standard, st.integers(1, 99)), st.floats(-9, 9), st.floats(0.1, 9)
    ),
    "ShiftedReLU": st.just(retroact.ShiftedReLU()),
    "Surrogate": st.builds(lambda a, b: a.surrogate(b), activations, st.floats(0.1, 99)),
    "WideResNet": st.builds(
        retroact.parse, st.sampled_from(["WideResNet(34, 4)", "WideResNet(16, 2)"])
    ),
}


@pytest.mark.parametrize("cls", specs(), ids=lambda cls: cls.__name__)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_reads_back_from_its_print_with_the_same_key(cls, data):
    made = data.draw(strategy(cls))
    again = parse(show(made))
    assert again == made and type(again) is cls
    assert key(again) == key(made) and hash(again) == hash(made)
    assert pickle.loads(pickle.dumps(made)) == made
    assert dataclasses.is_dataclass(made) and callable(made)


def meaning(cls: type) -> str:
    fields = [
        f"{f.name}={'…' if f.default is dataclasses.MISSING else show(f.default)}"
        for f in dataclasses.fields(cls)
    ]
    return f"{cls.__name__} v{getattr(cls, 'version', 1)}({', '.join(fields)})"


def test_a_change_of_fields_or_defaults_is_deliberate():
    """Keys leave defaults out, so a changed default would make old results pass for new ones.

    Where a line differs: a new field with a neutral default needs only this file updated
    (python tests/test_all_specs.py); a changed default or meaning needs a higher `version` too.
    """
    assert [meaning(cls) for cls in specs()] == GOLDEN.read_text(encoding="utf-8").splitlines()


def test_every_spec_says_what_it_is():
    for cls in specs():
        assert inspect.getdoc(cls) and not inspect.getdoc(cls).startswith(f"{cls.__name__}("), cls


if __name__ == "__main__":
    GOLDEN.write_text("\n".join(meaning(cls) for cls in specs()) + "\n", encoding="utf-8")
