"""Shows that a change of the code leaves every number as it was, bit for bit.

    PYTHONPATH=OLD python bench/same.py write before.json
    PYTHONPATH=NEW python bench/same.py write after.json
    python bench/same.py compare before.json after.json

`write` runs audits, attacks, sweeps and items of both studies on one thread, in a folder of their
own, and writes down what came out: every stored array as a hash, every number as it was printed,
every page as a hash; `--only audit,sweep,study,specs` runs some of it. PYTHONPATH decides which
package runs. What differs from run to run is left out: seconds, dates, machine and versions.
Nothing of the package is used but its command line, its files, and `parse` and `key` of its specs,
so that the same script serves the code before a change and after it.
`compare` prints what differs, a line each, and exits with 1 if anything does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKSUMS = frozenset(("id", "record_sum", "images_sum", "seal"))  # of seconds and versions, too
LEFT_OUT = frozenset(
    (
        "seconds",
        "seconds_per_image",
        "machine",
        "versions",
        "version",
        "written",
        "date",
        "made",
        "when",
    )
)
"""Columns and keys, at any depth, that do not count for equality."""
PASSING = re.compile(
    r"seconds: [\d.]+ and [\d.]+|[\d.]+ (seconds|minutes|hours)\b|\bpython \d[^·<\n|]*"
    r"|\d{4}-\d\d-\d\d([T ][\d:.+]+)?"
)
"""What of a page or a line does not count for equality."""
TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
LONG = 24
"""A longer list stands in the facts as its hash."""

DIGITS = "digits[:40]"
QUICK = ("--quick", "--seed", "0", "--workers", "1")
AUDITS = {
    "jump": ("JumpReLU(kappa=0.5)", "Linf(0.1)"),
    "bounded": ("BoundedReLU(bound=2.0)", "L2(0.8)"),
    "slope": ("SReLU(alpha=20.0)", "Linf(0.1)"),
}
BOTH_NORMS = (
    "PGD(steps=10, restarts=2)",
    "FGSM",
    "BIM",
    "APGD(steps=20)",
    "APGD(steps=10, loss='margin', targets=3)",
    "Square(queries=200)",
    "DeepFool",
    "FMN(steps=30)",
    "TrustRegion(steps=50)",
    "Momentum(steps=10, targets=2, finish=20, noise=0.5)",
    "StepLL(steps=3)",
    "Contrast",
    "GaussianBlur(steps=10)",
    "SaltAndPepper(steps=20)",
    "BlendedNoise(steps=20, draws=5)",
    "AdditiveUniformNoise(repeats=3)",
    "Inversion",
    "Torchattacks13DeepFool",
    "ErichsonDeepFool(std=(1.0,))",
)
LINF_ONLY = (
    "RFGSM",
    "ErichsonPGD(std=(1.0,))",
    "Torchattacks13BIM",
    "Torchattacks13RFGSM",
    "Torchattacks13StepLL",
)
L2_ONLY = (
    "DDN(steps=30)",
    "CarliniWagner(steps=20, search_steps=2)",
    "FGM",
    "AdditiveGaussianNoise(repeats=3)",
    "ErichsonTrustRegion(steps=50, std=(1.0,))",
)
SWEEPS = {
    "both": (BOTH_NORMS, ("Linf(0.1)", "Linf(0.25)", "L2(0.5)", "L2(1.5)"), ()),
    "linf": (LINF_ONLY, ("Linf(0.1)", "Linf(0.25)"), ("--source", "digits-cnn")),
    "l2": (L2_ONLY, ("L2(0.5)", "L2(1.5)"), ("--source", "digits-cnn")),
}
ATTACKS = {
    "target": ("PGD(steps=20)", "Linf(0.2)", "--goal", "Targeted(3)"),
    "least": ("DDN(steps=30)", "L2(2.0)", "--goal", "LeastLikely"),
    "random": ("APGD(steps=20)", "L2(1.0)", "--goal", "Random(seed=0)", "--seed", "3"),
    "smooth": ("PGD(steps=20)", "Linf(0.1)", "--beta", "16"),
    "double": ("DeepFool", "Linf(1.0)", "--dtype", "float64", "--chunk", "7"),
}
STUDIES = {
    "srelu": ("figure_1", "figure_7", "question_saliency"),
    "jumprelu": ("figure_1", "figure_2", "figure_3", "figure_5", "figure_6"),
}

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden_specs.txt"
STANDS_FOR = {
    "model": "Model('digits-cnn')",
    "data": "'digits[:9]'",
    "attack": "PGD(steps=3)",
    "threat": "Linf(8/255)",
    "name": "'mnist'",
    "Foolbox.name": "'LinfPGD'",
    "eps": "8/255",
    "net": "'digits-cnn'",
    "architecture": "DigitsCNN()",
    "shape": "(1, 8, 8)",
    "targets": "(1, 2)",
    "activations": "(JumpReLU(kappa=0.5), SReLU(alpha=5.0))",
    "activation": "JumpReLU(kappa=0.5)",
    "target": "3",
}
"""Values for the fields without a default, which a golden line leaves open as …"""
READ_SPECS = """
import importlib, json, pkgutil, sys
import retroact
from retroact.spec import key, parse
for home in pkgutil.walk_packages(retroact.__path__, "retroact."):
    importlib.import_module(home.name)
for text in json.load(sys.stdin):
    try:
        made = parse(text)
        print(json.dumps([str(made), key(made), getattr(type(made), "version", 1)]))
    except Exception as e:
        print(json.dumps([f"{type(e).__name__}: {e}", "", 0]))
"""

Flat = dict[str, Any]


@dataclass
class Entry:
    """What came out under one name: a cell, a spec, a file or what a command has printed."""

    place: str
    name: str
    key: str = ""
    facts: Flat = field(default_factory=dict)

    @property
    def part(self) -> str:
        return self.place.split("/")[0]

    def __str__(self) -> str:
        return f"{self.place}: {self.name}" if self.name else self.place

    def count(self) -> int:
        return len(self.facts) + bool(self.name) + bool(self.key)


# ------------------------------------------------------------------------------------------- write


def write(path: Path, only: Sequence[str]) -> None:
    print(f"the package is {_find_package()}", file=sys.stderr)
    entries: list[Entry] = []
    for part in only:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            entries += PARTS[part](Path(folder), part)
        print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    path.write_text(json.dumps([vars(e) for e in entries], indent=1) + "\n", encoding="utf-8")
    print(f"{sum(e.count() for e in entries)} facts of {len(entries)} things in {path}")


def _audit(folder: Path, part: str) -> Iterator[Entry]:
    for name, (activation, threat) in AUDITS.items():
        words = ("audit", "digits-cnn", activation, "--threat", threat, "--data", "digits[:60]")
        pages = [w for kind in ("json", "md", "html") for w in (f"--{kind}", f"{name}.{kind}")]
        yield _command(folder, f"{part}/{name}", [*words, *QUICK, *pages])
    yield from _read_folder(folder, part)


def _sweep(folder: Path, part: str) -> Iterator[Entry]:
    for name, (attacks, threats, more) in SWEEPS.items():
        words = ["sweep", "--net", "digits-cnn", "--data", DIGITS, *more, "--workers", "1"]
        words += _repeat("--activation", ("JumpReLU(kappa=0.5)", "SReLU(alpha=5.0)"))
        words += [*_repeat("--attack", attacks), *_repeat("--threat", threats), "--keep", "3"]
        yield _command(folder, f"{part}/{name}", [*words, "--store", f"{name}.sqlite", "--json"])
    for name, (attack, threat, *options) in ATTACKS.items():
        words = ["attack", "digits-cnn", attack, "--threat", threat, "--data", DIGITS, *options]
        words += ["--activation", "JumpReLU(kappa=0.5)", "--store", "attacks.sqlite", "--json"]
        yield _command(folder, f"{part}/{name}", words)
    pages = ("--md", "report.md", "--html", "report.html")
    yield _command(folder, f"{part}/report", ["report", "--store", "both.sqlite", *pages])
    yield from _read_folder(folder, part)


def _study(folder: Path, part: str) -> Iterator[Entry]:
    for paper, items in STUDIES.items():
        words = ["study", paper, *_repeat("--only", items), "--quick", "--workers", "1"]
        words += ["--store", f"{paper}.sqlite", "--out", "pages"]
        yield _command(folder, f"{part}/{paper}", words)
    yield from _read_folder(folder, part)


def _specs(folder: Path, part: str) -> Iterator[Entry]:
    lines = GOLDEN.read_text(encoding="utf-8").splitlines()
    texts = [_fill(line) for line in lines]
    ran = _run([sys.executable, "-c", READ_SPECS], folder, json.dumps(texts))
    if ran.returncode:
        raise SystemExit(f"the package cannot read specs:\n{ran.stderr}")
    for text, said in zip(texts, ran.stdout.splitlines(), strict=True):
        shown, key, version = json.loads(said)
        yield Entry(part, text, key, {"print": shown, "version of the spec": version})


PARTS: dict[str, Callable[[Path, str], Iterator[Entry]]] = {
    "specs": _specs,
    "audit": _audit,
    "sweep": _sweep,
    "study": _study,
}


def _fill(line: str) -> str:
    """The notation of a golden line: without its version, with values where it has none."""
    name = line.split(" ", 1)[0]

    def stand_in(match: re.Match[str]) -> str:
        which = match[1]
        return f"{which}={STANDS_FOR.get(f'{name}.{which}', STANDS_FOR.get(which, '…'))}"

    return re.sub(r"(\w+)=…", stand_in, re.sub(r" v\w+\(", "(", line, count=1))


def _repeat(option: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _command(folder: Path, place: str, words: Sequence[str]) -> Entry:
    """What a command of the package has printed, and whether it failed."""
    main = "from retroact.cli import main; main()"
    ran = _run([sys.executable, "-c", main, *words], folder)
    facts: Flat = {"exit": ran.returncode}
    if ran.returncode:
        facts["error"] = ran.stderr[-2000:]
        print(f"{place} failed: {ran.stderr[-2000:]}", file=sys.stderr)
    printed = dict(_read_json(ran.stdout) if words[-1] == "--json" else _read_lines(ran.stdout))
    return Entry(f"{place} prints", "", "", facts | printed)


def _run(words: Sequence[str], folder: Path, said: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "200"}
    env.pop("RETROACT_STORE", None)
    paths = [p for p in env.get("PYTHONPATH", "").split(os.pathsep) if p]
    env["PYTHONPATH"] = os.pathsep.join(str(Path(p).resolve()) for p in paths)
    how: dict[str, Any] = {"cwd": folder, "env": env, "input": said, "text": True}
    return subprocess.run(words, capture_output=True, check=False, **how)


def _find_package() -> str:
    with tempfile.TemporaryDirectory() as folder:
        say = "import retroact; print(retroact.__file__)"
        return _run([sys.executable, "-c", say], Path(folder)).stdout.strip() or "nowhere"


# -------------------------------------------------------------------------------------------- read


def _read_folder(folder: Path, part: str) -> Iterator[Entry]:
    """The facts of all files that the commands have left in `folder`."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        place = f"{part}/{path.relative_to(folder).as_posix()}"
        if path.suffix == ".sqlite":
            yield from _read_store(path, place)
        else:
            yield Entry(place, "", "", dict(_read_file(path)))


def _read_file(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".json":
        return _read_json(path.read_text(encoding="utf-8"))
    if path.suffix == ".md":
        return _read_lines(path.read_text(encoding="utf-8"))
    if path.suffix in (".html", ".svg"):
        text = TABLE.sub(_drop_cells, path.read_text(encoding="utf-8"))
        return iter([("content", _hash(PASSING.sub("", text).encode()))])
    return iter([("content", _hash(path.read_bytes()))])


def _read_lines(text: str) -> Iterator[tuple[str, Any]]:
    head: list[str] = []
    for i, line in enumerate(text.splitlines(), start=1):
        head = (head or line.split("|")) if line.startswith("|") else []
        columns = _drop_columns(head, line.split("|")) if head else [line]
        yield f"line {i}", PASSING.sub("", "|".join(columns))


def _drop_columns(head: list[str], row: list[str]) -> list[str]:
    """The columns of a row that count for equality, by the head of its table."""
    left_out = {i for i, name in enumerate(head) if name.strip() in LEFT_OUT}
    return [value for i, value in enumerate(row) if i not in left_out]


def _drop_cells(table: re.Match[str]) -> str:
    """A table of a page, with the cells alone that count for equality."""
    head = re.findall(r"<th[^>]*>(.*?)</th>", table[0], re.DOTALL)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table[0], re.DOTALL)
    cells = [re.findall(r"<t[dh].*?</t[dh]>", row, re.DOTALL) for row in rows]
    return "\n".join("".join(_drop_columns(head, row)) for row in cells)


def _read_json(text: str) -> Iterator[tuple[str, Any]]:
    try:
        # Floats stay the text that they are: their shortest print is them, bit for bit.
        yield from _flatten(json.loads(text, parse_float=lambda digits: f"{digits} (float)"))
    except json.JSONDecodeError:
        yield from _read_lines(text)


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts and lists by their path; a long list of leaves is its hash."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in LEFT_OUT:
                yield from _flatten(inner, f"{path}/{name}" if path else name)
    elif isinstance(value, list) and not (len(value) > LONG and _is_plain(value)):
        for i, inner in enumerate(value):
            yield from _flatten(inner, f"{path}[{i}]")
    elif isinstance(value, list):
        yield path, f"{len(value)} values, {_hash(json.dumps(value).encode())}"
    else:
        yield path, value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(v) for v in value)
    return not isinstance(value, Mapping)


def _read_store(path: Path, place: str) -> Iterator[Entry]:
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        about = dict(db.execute("SELECT name, value FROM about WHERE name = 'format'").fetchall())
        packed = about["format"] != "1"  # before, a record stood in its cell's row, as it is
        cells = "cells JOIN records USING (key)" if packed else "cells"
        for table, name in ((cells, "cell"), ("facts", "what")):
            for row in db.execute(f"SELECT * FROM {table} ORDER BY {name}, key"):
                columns = {
                    c: zlib.decompress(v) if packed and isinstance(v, bytes) else v
                    for c, v in dict(row).items()
                    if c not in {"key", name, *CHECKSUMS, *LEFT_OUT}
                }
                facts = {f: v for c, value in columns.items() for f, v in _read_column(c, value)}
                yield Entry(place, row[name], row["key"], facts)
        yield Entry(f"{place}, about", "", "", about)


def _read_column(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, bytes):
        yield from ((f"{name}/{what}", fact) for what, fact in _read_arrays(value))
    elif isinstance(value, str) and value[:1] in ("{", "["):
        yield from ((f"{name}/{what}", fact) for what, fact in _read_json(value))
    else:
        yield name, value.hex() if isinstance(value, float) else value


def _read_arrays(data: bytes) -> Iterator[tuple[str, Any]]:
    """The arrays of safetensors bytes, each as dtype, shape and hash, and what stands beside."""
    start = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:start])
    for what, text in head.pop("__metadata__", {}).items():
        yield from ((f"{what}/{name}", fact) for name, fact in _read_json(text))
    for name, array in sorted(head.items()):
        low, high = array["data_offsets"]
        content = _hash(data[start + low : start + high])
        yield name, f"{array['dtype']} {tuple(array['shape'])} {content}"


def _hash(content: bytes) -> str:
    return f"sha256 {hashlib.sha256(content).hexdigest()}"


# ----------------------------------------------------------------------------------------- compare


def compare(before: Path, after: Path) -> int:
    """Prints what differs and how much was compared; the number of differences."""
    old, new = _load(before), _load(after)
    for part in sorted({e.part for e in old} ^ {e.part for e in new}):
        print(f"{part} was run on one side only (--only) and is not compared")
    shared = {e.part for e in old} & {e.part for e in new}
    pairs = list(_pair(*([e for e in side if e.part in shared] for side in (old, new))))
    lines = [line for one, other in pairs for line in _tell_differences(one, other)]
    print(*lines, sep="\n", end="\n" if lines else "")
    compared = sum(entry.count() for one, other in pairs if (entry := one or other))
    print(f"{compared} facts of {len(pairs)} things compared, {len(lines)} differences")
    return len(lines)


def _load(path: Path) -> list[Entry]:
    return [Entry(**e) for e in json.loads(path.read_text(encoding="utf-8"))]


def _pair(old: list[Entry], new: list[Entry]) -> Iterator[tuple[Entry | None, Entry | None]]:
    """Each entry with that of the other side: by print, else by key, else by all of its facts."""
    old, new = list(old), list(new)
    for same in (_by_print_and_key, _by_print, _by_key, _by_facts):
        waiting: dict[Any, list[Entry]] = {}
        for entry in new:
            if (name := same(entry)) is not None:
                waiting.setdefault(name, []).append(entry)
        left = []
        for entry in old:
            if matches := waiting.get(same(entry)):
                yield entry, matches.pop(0)
            else:
                left.append(entry)
        old, new = left, [e for e in new if any(e is w for w in waiting.get(same(e), [e]))]
    yield from ((entry, None) for entry in old)
    yield from ((None, entry) for entry in new)


def _by_print_and_key(entry: Entry) -> Any:
    return entry.place, entry.name, entry.key


def _by_print(entry: Entry) -> Any:
    return entry.place, entry.name


def _by_key(entry: Entry) -> Any:
    return (entry.place, entry.key) if entry.key else None


def _by_facts(entry: Entry) -> Any:
    return (entry.place, json.dumps(entry.facts, sort_keys=True)) if entry.key else None


def _tell_differences(old: Entry | None, new: Entry | None) -> Iterator[str]:
    if old is None or new is None:
        yield f"{old or new}: only {'after' if old is None else 'before'}"
        return
    names = [*old.facts, *(n for n in new.facts if n not in old.facts)]
    differ = [n for n in names if _get(old, n) != _get(new, n)]
    only = "" if differ else " only"
    if old.name != new.name:
        yield f"{old}: print{only}: {old.name} -> {new.name}"
    if old.key != new.key:
        yield f"{old}: key{only}: {old.key} -> {new.key}"
    for name in differ:
        what = f"key only, {name}" if name.split("/")[-1] == "key" else name
        yield f"{old}: {what}: {_get(old, name)} -> {_get(new, name)}"


def _get(entry: Entry, name: str) -> str:
    return repr(entry.facts[name]) if name in entry.facts else "(not there)"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("file", type=Path)
    writing.add_argument("--only", default=",".join(PARTS), help="some of: %(default)s")
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    args = parser.parse_args()
    if args.command == "compare":
        sys.exit(compare(args.before, args.after) > 0)
    only = args.only.split(",")
    if unknown := set(only) - set(PARTS):
        parser.error(f"expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    write(args.file, only)


if __name__ == "__main__":
    main()
