"""The house has one direction: a room imports only rooms that stand before it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import retroact

HOUSE = Path(retroact.__file__).parent
EVERYONES = {
    *("spec", "files", "parts", "doors", "ground", "stopping", "shown", "shares", "figures"),
    "durations",
}
MAY_IMPORT: dict[str, set[str]] = {
    "spec": set(),
    "files": set(),
    "parts": set(),
    "doors": set(),
    "ground": set(),
    "stopping": set(),
    "shown": set(),
    "shares": set(),
    "figures": set(),
    "durations": set(),
    "nets": set(),
    "workers": set(),
    "executors": {"nets", "workers"},
    "clusters": {"executors"},
    "activations": set(),
    "retrofitting": {"activations"},
    "crafting": set(),
    "attacks": {"crafting"},
    "changing": {"nets", "activations", "retrofitting"},
    "checkpoint": {"nets", "activations", "retrofitting", "changing"},
    "reading": {
        "nets",
        "activations",
        "retrofitting",
        "changing",
        "crafting",
        "attacks",
        "checkpoint",
    },
    "evaluation": {"retrofitting.lean", "crafting", "reading"},
    "training": {
        "nets",
        "activations",
        "retrofitting",
        "changing",
        "crafting",
        "attacks",
        "checkpoint",
        "reading",
        "evaluation",
    },
    "auditing": {
        "executors",
        "nets",
        "activations",
        "retrofitting",
        "crafting",
        "attacks",
        "checkpoint",
        "reading",
        "evaluation",
    },
    "detection": {"crafting", "evaluation"},
    "experiments": {
        "nets",
        "executors",
        "activations",
        "retrofitting",
        "crafting",
        "attacks",
        "checkpoint",
        "reading",
        "evaluation",
        "training",
    },
    "reports": {
        "evaluation.metrics",
        "evaluation.record",
        "auditing.deciding",
        "auditing.evidence",
        "auditing.numbers",
        "auditing.verdict",
        "experiments.curves",
        "experiments.fields",
        "experiments.store",
    },
    "playing": {
        "nets",
        "activations",
        "retrofitting",
        "crafting",
        "attacks",
        "reading",
        "training",
        "auditing",
    },
    "demo": {
        "nets",
        "executors",
        "clusters",
        "activations",
        "retrofitting",
        "crafting",
        "attacks",
        "checkpoint",
        "reading",
        "evaluation",
        "training",
        "auditing",
        "detection",
        "experiments",
        "reports",
    },
}
MAY_IMPORT["testing"] = MAY_IMPORT["auditing"] | {"auditing"}
MAY_IMPORT["pytest_plugin"] = {"testing"}
MAY_IMPORT["studies"] = MAY_IMPORT["demo"] | {"changing"}
MAY_IMPORT["cli"] = MAY_IMPORT["demo"] | {"demo", "studies", "workers", "playing"}
MAY_IMPORT["__main__"] = {"cli"}
FILES = sorted(p for p in HOUSE.rglob("*.py") if p != HOUSE / "__init__.py")


def room_of(path: Path) -> str:
    first = path.relative_to(HOUSE).parts[0]
    return first.removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """The retroact modules that a file imports, anywhere in it, types included, without the leading
    name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            if node.module == "retroact":
                found |= {name.name for name in node.names} - {"__version__"}
            elif node.module and node.module.startswith("retroact."):
                module = node.module.removeprefix("retroact.")
                inner = {
                    f"{module}.{n.name}"
                    for n in node.names
                    if (HOUSE / module / f"{n.name}.py").exists()
                }
                found |= inner or {module}
        elif isinstance(node, ast.Import):
            found |= {
                n.name.removeprefix("retroact.")
                for n in node.names
                if n.name.startswith("retroact.")
            }
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(HOUSE)))
def test_a_room_imports_only_what_stands_before_it(path):
    room = room_of(path)
    assert room in MAY_IMPORT, (
        f"{room} has no place in the house: give it one in docs/architecture.md and here"
    )
    for module in imports_of(path):
        inside = module.split(".")[0] in {room, *EVERYONES}
        allowed = any(module == m or module.startswith(f"{m}.") for m in MAY_IMPORT[room])
        assert inside or allowed or (room == "cli" and module == "retroact"), (
            f"{room} must not import {module}"
        )


def test_rooms_hold_no_cycle():
    order = list(MAY_IMPORT)
    for room, before in MAY_IMPORT.items():
        assert all(order.index(b.split(".")[0]) < order.index(room) for b in before)


def test_no_file_imports_itself_by_way_of_others():
    """Types included: a file is understood by those that it imports, and they without it."""
    files = {".".join(p.relative_to(HOUSE).with_suffix("").parts): p for p in FILES}
    imports = {name: imports_of(path) & files.keys() for name, path in files.items()}
    settled: set[str] = set()
    while ready := {n for n in imports.keys() - settled if imports[n] <= settled}:
        settled |= ready
    assert settled == imports.keys(), sorted(imports.keys() - settled)


def test_rooms_and_functions_do_not_share_a_name():
    rooms = {p.name for p in HOUSE.iterdir() if p.is_dir()}
    assert not rooms & set(retroact.__all__)


def test_every_public_name_is_there():
    for name in retroact.__all__:
        assert getattr(retroact, name) is not None
    with pytest.raises(AttributeError, match="retroact has no 'utils'"):
        retroact.utils  # noqa: B018


def test_forbidden_words_do_not_occur_as_names():
    forbidden = ("utils", "helpers", "helper", "Manager")
    for path in FILES:
        names = {
            n.name
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.FunctionDef | ast.ClassDef)
        }
        bad = [n for n in names if n in forbidden or n.startswith(("Base", "get_", "GetA"))]
        assert path.stem not in forbidden and not bad, f"{path}: {bad}"


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["attack", "--help"],
        ["report", "--help"],
        ["audit", "--help"],
        ["harden", "--help"],
        ["list", "nets"],
        ["list", "attacks"],
        ["list", "activations", "--json"],
        ["list", "threats"],
        ["list", "goals"],
    ],
    ids=lambda words: " ".join(words),
)
def test_help_and_lists_need_no_torch(words):
    code = (
        f"import sys; sys.argv = ['retroact', *{words!r}]\n"
        "from retroact.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules and 'datasets' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_reports_need_no_torch(tmp_path):
    code = (
        "import sys\nfrom retroact.reports import audited, html, report, tables\n"
        "from retroact.experiments.store import Store\n"
        "assert tables.lines(Store(sys.argv[1])) == []\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s.sqlite")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
