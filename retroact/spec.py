"""A spec is a frozen dataclass that you can call: the stone the house stands on.

    @spec
    class JumpReLU:
        kappa: AtLeast0 = 0.0

Specs are compared by value, print as the code that makes them, are read back from that print by
`parse` (literals only: nothing is ever run), and are named by `key`, a hash of their content.
So one notation serves code, command line, tables and store, and nothing is registered by hand:
the decorator knows every spec that has been defined.

What a spec is good for, its kind, is a type: a base class or a protocol such as `Attack`. So
`parse(text, Attack)` reads an attack and nothing else, and `known(Attack)` has all of them.

Fields settle on construction: where a field is a float, ints and fractions such as "8/255" become
floats; where it is a spec or a kind of them, its text becomes one; lists become tuples; scalars of
numpy and of torch become Python's own; NaN, booleans in the place of numbers, specs of another
kind, and values outside a field's `Within` are refused with an error that says what was expected,
what came, and what to do.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import importlib
import inspect
import itertools
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeGuard,
    TypeVar,
    dataclass_transform,
    overload,
)

C = TypeVar("C")
T = TypeVar("T")


class CallError(ValueError):
    """A call that is wrong in its words alone, whatever the network and the data are: another word
    would do."""


class SpecError(CallError):
    """A spec that cannot be: unknown name, unknown field, or a value that its field refuses."""


def quote(value: object) -> str:
    """What came, as an error quotes it: its `repr`, at most `QUOTED` characters of it."""
    return shorten(repr(value))


def shorten(text: str) -> str:
    """A text on one line, at most `QUOTED` characters of it."""
    line = " ".join(text.split()) if "\n" in text else text
    return line if len(line) <= QUOTED else f"{line[: QUOTED - 1]}…"


@dataclass(frozen=True)
class Within:
    """The closed interval that a number must lie in; `above=True` leaves out the lower end, `cure`
    says what to do."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    cure: str = ""

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        low = f"{'greater than' if self.above else 'at least'} {self.low:g}"
        if self.high == math.inf:
            return low
        return (
            f"at most {self.high:g}"
            if self.low == -math.inf
            else f"{low} and at most {self.high:g}"
        )


AtLeast0 = Annotated[float, Within(0.0)]
Positive = Annotated[float, Within(0.0, above=True)]
UnitInterval = Annotated[float, Within(0.0, 1.0)]
Count = Annotated[int, Within(1)]
Seed = Annotated[int, Within(0, 2**62)]

MANY = 16
"""An error lists no more names than so many."""

LONGEST, DEEPEST = 10_000, 50
"""Characters of a text that is read as a spec, and how many specs, lists or quotients stand in one
another: more is refused before it is taken apart."""

QUOTED = 200
"""Characters of what came that an error quotes."""

_known: dict[str, type] = {}


@dataclass_transform(frozen_default=True, kw_only_default=False)
def spec(cls: type[C]) -> type[C]:
    """Makes `cls` a spec: a frozen dataclass whose fields settle and which prints as its own code.

    A class attribute `version: ClassVar[int]` counts the changes of meaning of its fields and
    enters the key; it is 1 where the class says nothing.
    """
    check = cls.__dict__.get("__post_init__")

    def settle(self: Any) -> None:
        for field, hint in _hints(cls).items():  # type: ignore[arg-type]  # a class is hashable
            object.__setattr__(
                self, field, _settle(getattr(self, field), hint, f"{cls.__name__}.{field}")
            )
        if check is not None:
            check(self)

    for name, function in (("__post_init__", settle), ("__repr__", show)):
        setattr(cls, name, function)
    made = dataclass(frozen=True, repr=False)(cls)
    other = _known.get(cls.__name__)
    if other is not None and other.__module__ != cls.__module__:
        raise SpecError(
            f"two specs are called {cls.__name__}: {other.__module__} and {cls.__module__}; "
            "names are the notation, so rename one"
        )
    _known[cls.__name__] = made
    _listed.cache_clear()
    _is_inherited.cache_clear()
    return made


def is_spec(value: object) -> bool:
    """Whether `value` is an instance of a class made by `spec`."""
    return _known.get(type(value).__name__) is type(value)


def is_spec_class(value: object) -> TypeGuard[type]:
    """Whether `value` is a class made by `spec`."""
    return isinstance(value, type) and _known.get(value.__name__) is value


# ------------------------------------------------------------------------------------------- kinds


def known(kind: type = object) -> list[type]:
    """The spec classes of a kind, by name: those of the package and all others defined so far."""
    package = importlib.import_module(__package__)
    for name in package.__all__:
        getattr(package, name)  # a spec is known once its home is imported
    return list(_listed(kind))


@cache  # until one more is known
def _listed(kind: type) -> tuple[type, ...]:
    return tuple(cls for _, cls in sorted(_known.items()) if _is_of(cls, kind))


def homes() -> list[str]:
    """The modules outside the package in which specs are written, but for the program's own."""
    names = {cls.__module__ for cls in _known.values()}
    return sorted(
        name for name in names - {"__main__", "__mp_main__"} if name.split(".")[0] != __package__
    )


def belongs(value: object, kind: type[T]) -> TypeGuard[T]:
    """Whether `value` is of `kind`.

    A spec is what its bases say. Where no spec names the kind as its base, and for what is no spec,
    it is a matter of the members that a protocol asks for.
    """
    if isinstance(value, type):
        return False
    if is_spec(value):
        return _is_of(type(value), kind)
    return kind in type(value).__mro__ or _has_all(value, kind)


def take(value: object, kind: type[T], where: str = "") -> T:
    """`value` as one of `kind`: itself, what its text says, or a class of specs at its defaults.

    Raises SpecError for what is of another kind, with a list of what belongs there; `where` names
    the place.
    """
    if isinstance(value, str):
        own = getattr(kind, "read", None)  # a class with a notation of its own reads it
        value = _parsed(value, kind, where) if own is None else own(value)
    elif is_spec_class(value):
        value = parse(value.__name__, kind)
    elif isinstance(value, type):
        raise SpecError(
            f"{where}{where and ': '}expected {_a(kind)}, got the class {value.__name__}; make"
            f" one: {value.__name__}(…)"
        )
    if not belongs(value, kind):
        raise _misplaced(value, kind, where)
    return value


def _is_of(cls: type, kind: type) -> bool:
    if kind in cls.__mro__:
        return True
    return not _is_inherited(kind) and _has_all(cls, kind)


@cache  # until one more is known
def _is_inherited(kind: type) -> bool:
    return any(kind in other.__mro__ for other in _known.values())


def _has_all(thing: object, protocol: type) -> bool:
    asked = _members(protocol)
    fields = getattr(thing, "__dataclass_fields__", ())  # one without default is no attribute yet
    return bool(asked) and all(hasattr(thing, name) or name in fields for name in asked)


@cache
def _members(kind: type) -> tuple[str, ...]:
    """What a protocol asks for; nothing where the kind is no protocol."""
    bases = [base for base in kind.__mro__ if _is_protocol(base)]
    names = {n for base in bases for n in (*vars(base), *vars(base).get("__annotations__", ()))}
    return tuple(sorted(n for n in names if n == "__call__" or not n.startswith("_")))


def _is_protocol(cls: type) -> bool:
    return cls is not Protocol and bool(getattr(cls, "_is_protocol", False))


def _is_kind(cls: type) -> bool:
    return _is_protocol(cls) or inspect.isabstract(cls)


def _misplaced(value: object, kind: type, where: str = "") -> SpecError:
    """The error for a value of another kind: what it is, and what belongs there."""
    kinds = [base for base in type(value).__mro__ if _is_protocol(base) or inspect.isabstract(base)]
    name = shorten(show(value)) if is_spec(value) else repr(value)[:60]
    which = f", {_a(kinds[-1])}," if kinds else ""
    names = [cls.__name__ for cls in known(kind) if cls is not kind]
    own = callable(value) and not type(value).__module__.startswith(f"{__package__}.")
    cure = f", or one of your own, which inherits {kind.__name__}" if own else ""
    return SpecError(
        f"{where}{where and ': '}{name}{which} does not belong here;"
        f" expected {_a(kind)}{_list(kind, names)}{cure}"
    )


def _list(kind: type, names: list[str]) -> str:
    """The names of a kind, or, of many, where they are listed."""
    if len(names) > MANY:
        return f": `retroact list {_a(kind).split()[-1]}s` names all {len(names)}"
    return f", one of: {', '.join(names)}" if names else ""


def _a(kind: type) -> str:
    """The kind in words: a threat model, an attack."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


# ------------------------------------------------------------------------------------------ print


def show(value: Any) -> str:
    """Prints a spec as the code that makes it: the first field (the knob) as a rule, others where
    they differ from their default. `parse(show(s)) == s` for every spec.

    >>> import retroact as ra
    >>> ra.show(ra.PGD(steps=40, relative_step=1 / 30))
    'PGD(steps=40, relative_step=1/30)'
    """
    if is_spec(value):
        said = ", ".join(f"{f}={show(v)}" for f, v in _said(value))
        return f"{type(value).__name__}({said})"
    if isinstance(value, tuple):
        inner = ", ".join(show(v) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, float):
        return _show_float(value)
    return repr(value)


def _said(value: Any) -> Iterator[tuple[str, Any]]:
    cls: Any = type(value)
    for i, field in enumerate(dataclasses.fields(value)):
        v = getattr(value, field.name)
        default = field.default
        plain = default is not dataclasses.MISSING and v == _settled_default(cls, field.name)
        # infinity and None say nothing
        if not plain or (i == 0 and v is not None and v != math.inf):
            yield field.name, v


@cache  # as `_hints`
def _settled_default(cls: Any, name: str) -> Any:
    field = next(f for f in dataclasses.fields(cls) if f.name == name)
    return _settle(field.default, _hints(cls)[name], f"{cls.__name__}.{name}")


def _show_float(value: float) -> str:
    # 8/255 is how the field writes a pixel radius; a quotient is used only where it is exactly this
    # float.
    if math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    if 0 < value < 1 and len(repr(value)) > 8:
        near = Fraction(value).limit_denominator(255)
        if near.numerator / near.denominator == value:
            over = 255 // near.denominator if 255 % near.denominator == 0 else 1
            return f"{near.numerator * over}/{near.denominator * over}"
    return repr(value)


# ------------------------------------------------------------------------------------------- read


@overload
def parse(text: str) -> Any: ...
@overload
def parse(text: str, kind: type[T]) -> T: ...
def parse(text: str, kind: type = object) -> object:
    """Reads a spec from its print: `parse('PGD(steps=40)')`; a bare name takes its defaults.

    Only literals are read (numbers, fractions of numbers, strings, True, False, None, tuples,
    lists, other specs); nothing is run and no attribute is looked up.

    `kind` says what the outermost spec must be: `parse("PGD", Attack)`. Raises SpecError for
    anything else, naming the nearest spec or field, or all that belong there.

    >>> import retroact as ra
    >>> ra.parse("Linf(8/255)").eps == 8 / 255
    True
    """
    return _parsed(text, kind)


def _parsed(text: str, kind: type, where: str = "") -> object:
    tree = _tree(text)
    tree = ast.Call(tree, [], []) if isinstance(tree, ast.Name) else tree
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name):
        _check_known(tree.func.id, kind, text)
    value = _read(tree, text)
    if not is_spec(value) and kind is object:
        raise SpecError(f"expected a spec such as PGD(steps=40), got {quote(text)}")
    if not belongs(value, kind):
        raise _misplaced(value if is_spec(value) else text, kind, where)
    return value


_APART = re.compile(r"([A-Za-z]\w*)[\s:]+([\d./e-]+)")
"""A name and a number, as people write a spec before they know how."""


def _tree(text: str) -> ast.expr:
    """The text taken apart, none of it looked up yet. SpecError for what is too long or deep."""
    if not isinstance(text, str):
        raise SpecError(f"expected a text such as PGD(steps=40), got {quote(text)}")
    if len(text) > LONGEST:
        raise SpecError(
            f"expected a spec of at most {LONGEST:,} characters, got {len(text):,} that begin"
            f" {quote(text)}; make it in Python, or from parts"
        )
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as e:
        if apart := _APART.fullmatch(text.strip()):
            raise SpecError(
                f"cannot read {quote(text)} as a spec; did you mean {apart[1]}({apart[2]})?"
            ) from None
        raise SpecError(
            f"cannot read {quote(text)} as a spec, expected Name(field=value, …):"
            f" {shorten(str(e)) or type(e).__name__}"
        ) from None
    if _is_deeper(tree, DEEPEST):
        raise SpecError(
            f"expected a spec of at most {DEEPEST} levels, got a deeper one: {quote(text)}; make it"
            " in Python, or from parts"
        )
    return tree


def _is_deeper(tree: ast.expr, most: int) -> bool:
    left: list[tuple[ast.AST, int]] = [(tree, 0)]
    while left:
        node, depth = left.pop()
        depth += isinstance(node, ast.expr) and not isinstance(node, ast.Name | ast.Constant)
        if depth > most:
            return True
        left += [(inner, depth) for inner in ast.iter_child_nodes(node)]
    return False


def _read(node: ast.AST, text: str) -> Any:
    match node:
        case ast.Constant(value=int() as value) if abs(value) >= 2**64:
            raise SpecError(
                f"expected whole numbers below 2^64, got one of {value.bit_length()} bits in"
                f" {quote(text)}"
            )
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            over, under = _read(left, text), _read(right, text)
            if isinstance(over, int | float) and isinstance(under, int | float) and under:
                return over / under
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_read(i, text) for i in items)
        case ast.Name(id=name):
            return _make(name, [], {})
        case ast.Call(func=ast.Name(id=name), args=args, keywords=words):
            values = {str(k.arg): _read(k.value, text) for k in words}
            return _make(name, [_read(a, text) for a in args], values)
    raise SpecError(
        f"{quote(ast.unparse(node))} in {quote(text)} is no literal; write numbers, strings or"
        " specs"
    )


def _find(name: str) -> type | None:
    # The package imports the homes of its public names on first use, and a spec is known once its
    # home is.
    if name not in _known:
        getattr(importlib.import_module(__package__), name, None)
    return _known.get(name)


def _check_known(name: str, kind: type = object, text: str = "") -> None:
    """Raises SpecError, naming the nearest of those that would do, for a name that no spec has;
    within a `text` that it begins, the text with that one."""
    if _find(name) is None:
        names = [cls.__name__ for cls in known(kind)]
        rest = text.strip().removeprefix(name)
        said = _unknown("spec", name, names, rest if len(rest) <= QUOTED else "")
        if "did you mean" in said:
            raise SpecError(said)
        where = _list(kind, names) if len(names) > MANY and kind is not object else ""
        cure = "one of your own is known once its module is imported (--import MODULE)"
        raise SpecError(f"{said}{where}; {cure}")


def _make(name: str, args: list[Any], values: dict[str, Any]) -> Any:
    _check_known(name)
    cls = _known[name]
    fields = [f.name for f in dataclasses.fields(cls)]
    if len(args) > len(fields):
        raise SpecError(
            f"{name} takes at most {len(fields)} values ({', '.join(fields)}), got {len(args)}"
        )
    # A spec that wraps somebody else's takes that one's own words, too, by a constructor of its
    # own.
    takes_more = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls).parameters.values())
    for word in values:
        if word not in fields and not takes_more:
            raise SpecError(f"{name}: {_unknown('field', word, fields)}")
        if word in fields[: len(args)]:
            raise SpecError(f"{name}.{word} is given twice; drop one")
    given = dict(zip(fields, args, strict=False)) | values
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.name not in given
    ]
    if missing:
        raise SpecError(f"{name} needs {', '.join(missing)}; write {name}({missing[0]}=…)")
    return cls(**given)


def _unknown(what: str, name: str, names: list[str], rest: str = "") -> str:
    """That there is no such name, and the nearest, with the `rest` of its text; a few are listed,
    many never."""
    folded = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.5)
    hint = f"; did you mean {folded[near[0]]}{rest}?" if near else ""
    listed = f" (known: {', '.join(sorted(names))})" if len(names) <= MANY else ""
    return f"unknown {what} {quote(name)}{hint}{listed}"


# ------------------------------------------------------------------------------------------- key


def key(value: Any, versions: Mapping[type, int] | None = None) -> str:
    """Names a spec by its content: 16 hex digits of a SHA-256 over its print and its versions.

    The same content gives the same key in every process and on every machine; fields at their
    default do not count, so a new field with a neutral default leaves old keys as they are.
    `versions` stand in the place of the classes' own: the key that a result had when it was made.
    """
    said = f"{show(value)}|{','.join(sorted(set(_versions(value, versions or {}))))}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def keys(value: Any) -> Iterator[str]:
    """Every key that a spec has had: with each version, until today's, of the classes in it."""
    classes = {cls for cls in _classes(value) if getattr(cls, "version", 1) > 1}
    ordered = sorted(classes, key=lambda cls: cls.__name__)
    counts = (range(getattr(cls, "version", 1), 0, -1) for cls in ordered)
    for versions in itertools.product(*counts):
        yield key(value, dict(zip(ordered, versions, strict=True)))


def _classes(value: Any) -> Iterator[type]:
    if is_spec(value):
        yield type(value)
        for _, inner in _said(value):
            yield from _classes(inner)
    elif isinstance(value, tuple):
        for inner in value:
            yield from _classes(inner)


def _versions(value: Any, versions: Mapping[type, int]) -> Iterator[str]:
    if is_spec(value):
        cls = type(value)
        yield f"{cls.__name__}={versions.get(cls, getattr(cls, 'version', 1))}"
        for _, inner in _said(value):
            yield from _versions(inner, versions)
    elif isinstance(value, tuple):
        for inner in value:
            yield from _versions(inner, versions)


# --------------------------------------------------------------------------------------- settling


@cache  # classes do not change, and every spec that is made asks
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {
        n: h for n, h in hints.items() if typing.get_origin(h) is not ClassVar and h is not ClassVar
    }


def _settle(value: Any, hint: Any, where: str) -> Any:
    value = _plain(value)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _settle(value, inner[0], where)
        for bound in inner[1:]:
            _check_within(value, bound, where)
        return value
    if origin in (typing.Union, types.UnionType):
        return _settle_union(value, inner, where)
    if origin is Literal:
        if value not in inner:
            raise SpecError(f"{where}: {_unknown('choice', str(value), [str(i) for i in inner])}")
        return value
    if origin is tuple and (
        isinstance(value, list | tuple) or len(getattr(value, "shape", ())) == 1
    ):
        return tuple(_settle(v, inner[0], f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float:
        return _settle_float(value, where)
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise SpecError(f"{where}: expected a whole number, got {quote(value)}")
        return value
    if hint is Any:
        if not isinstance(value, tuple):
            return value
        return tuple(_settle(v, Any, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(hint, type) and hint.__module__ != "builtins":
        return take(value, hint, where)
    if isinstance(hint, type) and not isinstance(value, hint):
        raise SpecError(f"{where}: expected {hint.__name__}, got {quote(value)}")
    return value


def _plain(value: Any) -> Any:
    """A scalar of numpy or a tensor without dimensions as Python's own; anything else as it is.

    A float shorter than Python's becomes what was meant, the shortest decimal or the fraction that
    rounds to it: float32(0.1) is 0.1 and not 0.10000000149, float32(8/255) is 8/255.
    """
    if not hasattr(value, "item") or getattr(value, "shape", None) != ():
        return value
    number = value.item()
    if hasattr(number, "item"):  # longer than Python's, and so numpy's own still
        return float(number)
    if isinstance(number, float) and math.isfinite(number) and value.dtype.itemsize < 8:
        rounded = getattr(value, "new_tensor", None) or value.dtype.type
        return next((meant for meant in _meant(number) if rounded(meant) == value), number)
    return number


def _meant(number: float) -> Iterator[float]:
    yield from (float(f"{number:.{digits}g}") for digits in range(1, 7))
    yield float(Fraction(number).limit_denominator(255))
    yield from (float(f"{number:.{digits}g}") for digits in range(7, 10))


def _settle_union(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    errors = []
    for choice in choices:
        if choice is type(None):
            if value is None:
                return None
            continue
        try:
            return _settle(value, choice, where)
        except SpecError as e:
            errors.append(e)
    raise errors[-1]


def _settle_float(value: Any, where: str) -> float:
    if isinstance(value, str):
        value = _fraction(value, where)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpecError(
            f'{where}: expected a number or a fraction such as "8/255", got {quote(value)}'
        )
    if math.isnan(value):
        raise SpecError(f"{where}: expected a number, got NaN; give a finite value")
    try:
        return float(value) + 0.0  # -0.0 and 0.0 are one value and must be one key
    except OverflowError:
        raise SpecError(
            f"{where}: expected a number, got {quote(value)}; it is too large"
        ) from None


def _fraction(text: str, where: str) -> float:
    try:
        over, _, under = text.partition("/")
        return float(over) / float(under) if under else float(over)
    except (ValueError, ZeroDivisionError):
        raise SpecError(
            f'{where}: expected a number or a fraction such as "8/255", got {quote(text)}'
        ) from None


def _check_within(value: Any, bound: Any, where: str) -> None:
    if isinstance(bound, Within) and value is not None and value not in bound:
        raise SpecError(
            f"{where}: expected a number {bound}, got {quote(value)}"
            f"{bound.cure and '; '}{bound.cure}"
        )
