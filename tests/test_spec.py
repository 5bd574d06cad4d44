"""Specs print as code, are read back without running any, settle, and are named by content."""

import math
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retroact.spec import (
    AtLeast0,
    Count,
    Positive,
    SpecError,
    Within,
    key,
    known,
    parse,
    show,
    spec,
    take,
)


@spec
class Inner:
    width: Positive


@spec
class Outer:
    steps: Count = 40
    size: AtLeast0 | None = None
    kind: Literal["plain", "odd"] = "plain"
    many: tuple[float, ...] = ()
    inner: Any = None
    text: str = ""
    share: Annotated[float, Within(0.0, 1.0)] = 0.5
    flag: bool = False


outers = st.builds(
    Outer,
    steps=st.integers(1, 10**6),
    size=st.none() | st.floats(0, 1e9) | st.integers(0, 255).map(lambda k: k / 255),
    kind=st.sampled_from(["plain", "odd"]),
    many=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3).map(tuple),
    inner=st.none() | st.builds(Inner, st.floats(1e-30, 1e30)),
    text=st.text(max_size=8),
    share=st.floats(0, 1),
    flag=st.booleans(),
)


@given(outers)
def test_print_reads_back_equal_with_the_same_key(outer):
    again = parse(repr(outer))
    assert again == outer
    assert key(again) == key(outer)
    assert hash(again) == hash(outer)
    assert pickle.loads(pickle.dumps(outer)) == outer


@given(outers, outers)
def test_keys_differ_exactly_where_specs_do(a, b):
    assert (key(a) == key(b)) == (a == b)


def test_print_shows_the_first_field_and_what_differs_from_the_default():
    assert show(Outer()) == "Outer(steps=40)"
    assert (
        show(Outer(size="8/255", many=[1, 2.5])) == "Outer(steps=40, size=8/255, many=(1.0, 2.5))"
    )
    assert show(Outer(inner=Inner(3))) == "Outer(steps=40, inner=Inner(width=3.0))"


def test_a_fraction_is_the_float_that_python_divides():
    assert Inner("8/255").width == 8 / 255 == parse("Inner(8/255)").width
    assert show(Inner(0.1)) == "Inner(width=0.1)"


@pytest.mark.parametrize(
    "number",
    [
        np.float16(0.1),
        np.float32(0.1),
        np.float64(0.1),
        np.longdouble("0.1"),
        np.array(0.1, np.float32),
    ]
    + [
        torch.tensor(0.1, dtype=t)
        for t in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    ],
    ids=repr,
)
def test_a_scalar_of_numpy_or_torch_is_the_number_that_was_meant(number):
    made = Outer(size=number, many=[number, 1], inner=(number, ("a", number)))
    assert made == Outer(size=0.1, many=[0.1, 1], inner=(0.1, ("a", 0.1))) and key(made) == key(
        parse(show(made))
    )
    assert type(made.size) is float and type(made.inner[1][1]) is float


def test_whole_numbers_fractions_texts_and_arrays_of_numpy_and_torch():
    for three in (np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)):
        assert Outer(steps=three) == Outer(3) and type(Outer(steps=three).steps) is int
        assert Inner(three) == Inner(3.0)
    assert (
        Inner(np.float32(8 / 255))
        == Inner(np.float32(8) / 255)
        == Inner(torch.tensor(8 / 255))
        == Inner("8/255")
    )
    assert np.float32(Inner(np.float32(0.123456789)).width) == np.float32(0.123456789)
    assert (
        Outer(many=np.array([0.1, 2], np.float32))
        == Outer(many=torch.tensor([0.1, 2]))
        == Outer(many=(0.1, 2.0))
    )
    assert Outer(flag=np.bool_(True)).flag is True and Outer(kind=np.str_("odd")) == Outer(
        kind="odd"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", np.float32(3)),
        ("steps", np.bool_(True)),
        ("steps", torch.tensor(True)),
        ("steps", np.array([3])),
        ("size", np.bool_(False)),
        ("size", np.float32("nan")),
        ("size", torch.tensor([0.1])),
        ("size", np.complex64(1)),
    ],
)
def test_scalars_that_mean_no_number_are_refused(field, value):
    with pytest.raises(SpecError, match=f"Outer.{field}: expected a (whole )?number"):
        Outer(**{field: value})


def test_key_is_the_same_in_every_process():
    # A known answer: a change of the print or of the hash would orphan every stored result.
    assert key(Inner(0.5)) == "422a7609177bc3d1"


def test_version_enters_the_key():
    before = key(Outer())
    Outer.version = 2
    try:
        assert key(Outer()) != before
    finally:
        del Outer.version


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Inner(-1)", "Inner.width: expected a number greater than 0, got -1.0"),
        ("Inner('NaN')", "NaN"),
        ("Inner(width=True)", "expected a number"),
        ("Inner()", "Inner needs width"),
        ("Iner(1)", "did you mean Inner(1)?"),
        ("Outer(stps=3)", "did you mean steps?"),
        ("Outer(kind='od')", "did you mean odd?"),
        ("Outer(steps=1.5)", "expected a whole number, got 1.5"),
        ("Outer(share=2)", "at least 0 and at most 1"),
        ("Outer(3, steps=4)", "given twice"),
        ("Outer(1, 2, 'odd', (), None, '', 0, True, 9)", "at most 8 values"),
        ("__import__('os').system('true')", "no literal"),
        ("Inner(width=(lambda: 1)())", "no literal"),
        ("Inner(1/0)", "no literal"),
        ("Inner(1", "cannot read"),
        ("3", "expected a spec"),
        ("(" * 9000, "cannot read"),
    ],
)
def test_what_cannot_be_is_refused_with_the_cure(text, says):
    with pytest.raises(
        SpecError, match=says.replace("(", r"\(").replace(")", r"\)").replace("?", r"\?")
    ):
        parse(text)


def test_nothing_is_run_while_reading(tmp_path):
    marker = tmp_path / "ran"
    for text in (f"Inner(open({str(marker)!r}, 'w'))", f"open({str(marker)!r}, 'w')"):
        with pytest.raises(SpecError):
            parse(text)
    assert not marker.exists()


class Shape(Protocol):
    """A kind by its members; what has them is of the kind, whoever made it."""

    sides: int

    def area(self) -> float: ...


@spec
class Quad:
    sides: ClassVar[int] = 4
    side: Positive = 1.0

    def area(self) -> float:
        return self.side**2


class Solid(Protocol):
    """A kind that specs name as their base: then it is that, and no likeness."""

    def volume(self) -> float: ...


@spec
class Cube(Solid):
    side: Positive = 1.0

    def volume(self) -> float:
        return self.side**3


@spec
class Ghost:
    side: Positive = 1.0

    def volume(self) -> float:
        return 0.0


@spec
class Box:
    solid: Solid = Cube()
    shapes: tuple[Shape, ...] = ()


def test_a_kind_is_a_type():
    assert parse("Cube(2)", Solid) == Cube(2.0) and parse("Quad", Shape) == Quad()
    assert Cube in known(Solid) and Quad in known(Shape) and Quad in known()
    assert not {Ghost, Quad, Inner} & {*known(Solid)} and not {Cube, Inner} & {*known(Shape)}
    assert {cls.__name__ for cls in known()} >= {"PGD", "Linf", "Cell"}  # of the package, all


def test_what_is_of_another_kind_is_refused_with_a_list_of_what_belongs_there():
    with pytest.raises(SpecError, match=r"Quad\(side=2.0\) does not .* a solid, one of: Cube$"):
        parse("Quad(2)", Solid)
    with pytest.raises(SpecError, match=r"Ghost\(side=1.0\) does not .* a solid, one of: Cube$"):
        Box(Ghost())
    with pytest.raises(SpecError, match=r"Box.shapes\[0\]: Cube.*, a solid, does not .* one of: Q"):
        Box(shapes=(Cube(),))
    with pytest.raises(
        SpecError, match=r"'3' does not belong here; expected a solid, one of: Cube"
    ):
        parse("3", Solid)
    with pytest.raises(
        SpecError, match=r"expected a solid, got the class Path; make one: Path\(…\)"
    ):
        take(Path, Solid)
    with pytest.raises(SpecError, match=r"did you mean Cube\? \(known: Cube\)"):
        parse("cube", Solid)


def test_a_field_of_a_kind_takes_a_text_a_class_and_what_is_no_spec_but_has_its_members():
    class Balloon:
        def volume(self):
            return 1.0

    balloon = Balloon()
    assert Box("Cube(2)") == Box(Cube(2.0)) and Box(Cube) == Box() and Box(balloon).solid is balloon
    assert parse("Box(Cube(3), [Quad(2)])") == Box(Cube(3.0), (Quad(2.0),))
    with pytest.raises(SpecError, match="expected a solid"):
        Box(lambda: 1.0)


def test_specs_are_frozen_and_settled():
    with pytest.raises(FrozenInstanceError):
        Inner(1.0).width = 2.0
    assert type(Inner(1).width) is float
    assert math.copysign(1, Outer(size=-0.0).size) == 1


def test_own_checks_run_after_settling():
    @spec
    class Ordered:
        low: float
        high: float
        norms: ClassVar[tuple[str, ...]] = ()

        def __post_init__(self):
            if self.low > self.high:
                raise SpecError(f"low {self.low} above high {self.high}")

    with pytest.raises(SpecError, match="low 2.0 above high 1.0"):
        Ordered("2", 1)


def test_two_specs_of_one_name_are_refused():
    with pytest.raises(SpecError, match="two specs are called Inner"):
        spec(type("Inner", (), {"__module__": "elsewhere", "__annotations__": {}}))
