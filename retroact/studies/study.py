"""study("srelu"): every item of a paper, made from the store, as one `Study` that reports can
print.

An item is a module of the paper's folder called figure_… or table_… or truth…; the first line of
its docstring is its title, and its `make(desk)` yields the parts. Nothing else has to be told about
it.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from retroact.executors import SERIAL, Executor
from retroact.experiments.cell import hashed_once
from retroact.experiments.store import Store
from retroact.files import write
from retroact.reading import Said
from retroact.reports import studied
from retroact.reports.studied import Item, Part, Study, Text
from retroact.spec import CallError, take
from retroact.studies.desk import Desk, NotMeasuredError
from retroact.studies.earlier import Earlier
from retroact.studies.published import claims, published

PAPERS = {
    "jumprelu": "JumpReLU, made anew and audited",
    "srelu": "Sloped ReLU, made anew and audited",
    "ledger": "The ledger: what changes of a network claim, and what is left of it",
}
PUBLISHED = "Published numbers stand in columns called “published” and in thin lines."
SIZES = "How many images each number rests on stands beside it, and under every item."
KINDS = ("table", "figure", "truth", "question", "entry")
"""What an item's file may be called after, in the order of the page."""


def items(paper: str) -> list[str]:
    """The names of a paper's items, in the order of the page. Raises ValueError for another
    paper."""
    if paper not in PAPERS:
        raise CallError(f"there is no study of {paper!r}; expected one of: {', '.join(PAPERS)}")
    package = importlib.import_module(f"retroact.studies.{paper}")
    names = [
        m.name for m in pkgutil.iter_modules(package.__path__) if m.name.split("_")[0] in KINDS
    ]
    return sorted(names, key=_place)


def study(
    paper: str,
    store: Store,
    *,
    only: Sequence[str] = (),
    quick: bool = False,
    large: bool = False,
    full: Sequence[str] = (),
    stored: bool = False,
    executor: Said[Executor] = SERIAL,
    fresh: bool = False,
    progress: Callable[[float, int], None] = lambda done, total: None,
) -> Study:
    """Makes the items `only` (all where it is empty) of `paper`; what the store has is not run
    again, unless all is to be made `fresh`.

    A `quick` study uses a few hundred images, and leaves out networks that take hours on a CPU
    unless it is to measure the `large` ones too; the items `full` have all images and all networks.
    A `stored` one prints what the store has, at the largest size that it has it, draws pictures,
    measures nothing else and says what is not measured yet. Raises ValueError for an item that is
    not there, for `full` and `large` where all are, and for `stored` with any of these,
    StoreInUseError where something is to be measured and another process fills the store, unless
    that was opened to wait.
    """
    _check(paper, only, full, quick=quick, large=large, measures=not stored, fresh=fresh)
    finished: list[Item] = []
    names = [name for name in items(paper) if not only or name in only]
    shared: dict[str, Any] = {"executor": take(executor, Executor), "stored": stored}
    shared |= {"progress": lambda part: progress(len(finished) + part, len(names))}
    shared |= {"anew": set() if fresh else None}
    with hashed_once(), store.claim_kept():  # from the first item on that measures something
        for name in names:
            small = quick and name not in full
            how = {**shared, "quick": small, "large": large or not small}
            finished.append(_make(paper, name, store, how))
            progress(len(finished), len(names))
    source = f"{published(paper, 'source')}. {PUBLISHED}"
    return Study(paper, PAPERS[paper], source, tuple(finished), claims(paper), (SIZES,))


def _check(
    paper: str,
    only: Sequence[str],
    full: Sequence[str],
    *,
    quick: bool,
    large: bool,
    measures: bool,
    fresh: bool,
) -> None:
    known = items(paper)
    if not measures and (quick or large or full or fresh):
        raise CallError(
            "stored= prints what the store has, at the largest size; leave quick=, large=, full="
            " and fresh= out"
        )
    if full and not quick:
        raise CallError(
            "full= names the items of a quick study that are made at full size; without quick="
            " all are"
        )
    if large and not quick:
        raise CallError(
            "large= adds the large networks to a quick study; without quick= they are measured"
            " anyway"
        )
    unknown = [name for name in (*only, *full) if name not in known]
    if unknown:
        raise CallError(f"{paper} has no item {unknown[0]!r}; expected some of: {', '.join(known)}")


def _set_up(paper: str, store: Store, how: dict[str, Any]) -> Desk:
    """A desk with the paper's own chunk, and with what its page was measured with."""
    chunk = getattr(importlib.import_module(f"retroact.studies.{paper}"), "CHUNK", None)
    earlier: Earlier = importlib.import_module(f"retroact.studies.{paper}.measured").EARLIER
    return Desk(store, chunk=chunk, earlier=earlier, **how)


def write_pages(result: Study, folder: str | Path) -> list[Path]:
    """Writes the study into `folder`: NAME.html, NAME.md and its figures beside it in NAME/."""
    folder = Path(folder)
    text, figures = studied.markdown(result, result.name)
    (folder / result.name).mkdir(parents=True, exist_ok=True)
    for name, svg in figures.items():
        write(svg, folder / result.name / name)
    return [
        write(studied.page(result), folder / f"{result.name}.html"),
        write(text, folder / f"{result.name}.md"),
    ]


def _make(paper: str, name: str, store: Store, how: dict[str, Any]) -> Item:
    """An item; of a stored study at full size, else at the quick one, else as far as it goes."""
    module = importlib.import_module(f"retroact.studies.{paper}.{name}")
    desk = _set_up(paper, store, how)
    parts, missing = _collect(module, desk)
    if missing:
        small = _set_up(paper, store, {**how, "quick": True, "large": True})
        fewer, still = _collect(module, small)
        desk, parts, missing = (desk, parts, missing) if still else (small, fewer, False)
    scale = f" --quick{' --large' if desk.large else ''}" if desk.quick else ""
    command = f"retroact study {paper} --only {name}{scale}"
    if missing:
        parts.append(Text(f"The rest of this item is not measured yet: `{command}`."))
    said = tuple(parts), command, tuple(desk.used), desk.seconds, frozenset(desk.keys)
    return Item(name, _title(module), *said)


def _collect(module: ModuleType, desk: Desk) -> tuple[list[Part], bool]:
    """The parts of an item, and whether it ended where something is not measured."""
    parts: list[Part] = []
    try:
        for part in module.make(desk):
            parts.append(part)
    except NotMeasuredError:
        return parts, True
    return parts, False


def _title(module: ModuleType) -> str:
    return (module.__doc__ or module.__name__).strip().splitlines()[0].removesuffix(".")


def _place(name: str) -> tuple[int, list[int | str]]:
    """table_2 before figure_1 before figure_10."""
    words = re.split(r"(\d+)", name)
    return KINDS.index(name.split("_")[0]), [int(w) if w.isdigit() else w for w in words]
