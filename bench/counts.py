"""Counts what a reader of the code stumbles over, for the checkout that ROOT names.

    python bench/counts.py [ROOT] [--json]

All of it is read from the source: nothing is imported, so any checkout can be counted.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

LONGEST = 40
WIDEST = 100
NORMS = ("linf", "l2", "l1")
BALLS = ("Linf", "L2", "L1")
PROBES = ("getattr", "hasattr")
PARTICIPLES = (
    *("made", "found", "said", "bent", "sent", "kept", "told", "known"),
    *("seen", "drawn", "shown", "chosen", "taken", "given", "written", "read"),
)
VAGUE = ("found", "made")

Function = ast.FunctionDef | ast.AsyncFunctionDef
N = TypeVar("N", bound=ast.AST)
Modules = Mapping[str, ast.Module]
Counts = dict[str, list[str]]


def count(root: Path) -> Counts:
    """The places found, by what they are an instance of."""
    modules = _read_modules(root)
    return {
        f"functions over {LONGEST} lines": list(_find_long_functions(modules)),
        f"lines over {WIDEST} columns": list(_find_wide_lines(root)),
        "uses of Any in types": list(_find_any(modules)),
        "import cycles, types included": list(_find_cycles(modules, root)),
        "norms by name outside threat.py": list(_find_norms(modules)),
        "of these: compared, matched, keys": list(_find_norm_branches(modules)),
        "isinstance or case on a norm outside threat.py": list(_find_norm_checks(modules)),
        "probes of an attack by getattr or hasattr": list(_find_probes(modules, {"attack"})),
        "probes of anything by getattr or hasattr": list(_find_probes(modules, None)),
        "private functions named by a participle": list(_find_participles(modules)),
        "variables called found or made": list(_find_vague_variables(modules)),
    }


def _read_modules(root: Path) -> dict[str, ast.Module]:
    """The modules of the package by their path from `root`."""
    paths = sorted((root / "retroact").rglob("*.py"))
    return {p.relative_to(root).as_posix(): ast.parse(p.read_text(encoding="utf-8")) for p in paths}


# ------------------------------------------------------------------------------------------ length


def _find_long_functions(modules: Modules) -> Iterator[str]:
    """Functions and methods from their `def` to their end, docstring and all."""
    for path, tree in modules.items():
        for function in _functions(tree):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > LONGEST:
                yield f"{path}:{function.lineno} {function.name}, {lines} lines"


def _find_wide_lines(root: Path) -> Iterator[str]:
    for path in _list_tracked(root):
        lines = (root / path).read_text(encoding="utf-8").splitlines()
        yield from (f"{path}:{i}" for i, line in enumerate(lines, start=1) if len(line) > WIDEST)


def _list_tracked(root: Path) -> list[str]:
    words = ["git", "-C", str(root), "ls-files", "*.py"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return [path for path in listed if (root / path).is_file()]


# ------------------------------------------------------------------------------------------- types


def _find_any(modules: Modules) -> Iterator[str]:
    """Each name Any but that of an import: it stands nowhere but in types."""
    for path, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id == "Any":
                yield f"{path}:{node.lineno}"
            elif isinstance(node, ast.Constant) and _is_quoted_any(node.value):
                yield f"{path}:{node.lineno} (quoted)"


def _is_quoted_any(value: object) -> bool:
    """Whether a text is a type that has Any in it, such as "dict[str, Any]"."""
    if not isinstance(value, str) or "Any" not in value:
        return False
    try:
        return any(node.id == "Any" for node in _walk(ast.parse(value, mode="eval"), ast.Name))
    except SyntaxError:
        return False


# ----------------------------------------------------------------------------------------- imports


def _find_cycles(modules: Modules, root: Path) -> Iterator[str]:
    """Sets of modules that import each other, by imports anywhere: of types, and in functions."""
    names = {_name(path): path for path in modules}
    graph = {name: _imports(name, path, modules[path], names) for name, path in names.items()}
    for members in _components(graph):
        if len(members) > 1 or members[0] in graph[members[0]]:
            yield ", ".join(members)


def _name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imports(name: str, path: str, tree: ast.Module, names: Iterable[str]) -> set[str]:
    """The package's modules that one imports; a package's own names belong to its __init__."""
    package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
    wanted: set[str] = set()
    for plain in _walk(tree, ast.Import):
        wanted |= {alias.name for alias in plain.names}
    for node in _walk(tree, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
            base = f"{above}.{base}".rstrip(".")
        inner = {f"{base}.{alias.name}" for alias in node.names}
        modules = inner & set(names)
        wanted |= modules if len(modules) == len(inner) else {*modules, base}
    return (wanted & set(names)) - {name}


def _components(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components, each sorted, largest first."""
    reach = {name: _reach(graph, name) for name in graph}
    seen: set[str] = set()
    components = []
    for name in sorted(graph):
        if name not in seen:
            members = sorted({name} | {other for other in reach[name] if name in reach[other]})
            seen.update(members)
            components.append(members)
    return sorted(components, key=lambda members: (-len(members), members))


def _reach(graph: Mapping[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    ahead = [start]
    while ahead:
        for name in graph[ahead.pop()] - reached:
            reached.add(name)
            ahead.append(name)
    return reached


# ------------------------------------------------------------------------------------------- norms


def _find_norms(modules: Modules) -> Iterator[str]:
    """Constants that name a norm, wherever they stand."""
    for path, tree in _outside_threat(modules):
        for node in _walk(tree, ast.Constant):
            if node.value in NORMS:
                yield f"{path}:{node.lineno} {node.value!r}"


def _find_norm_branches(modules: Modules) -> Iterator[str]:
    """Constants that name a norm where something is decided by it: ==, in, case, keys, [...]."""
    for path, tree in _outside_threat(modules):
        asked = [(c.lineno, side) for c in _walk(tree, ast.Compare) for side in _sides(c)]
        asked += [(v.lineno, v.value) for v in _walk(tree, ast.MatchValue)]
        asked += [(d.lineno, key) for d in _walk(tree, ast.Dict) for key in d.keys if key]
        asked += [(i.lineno, i.slice) for i in _walk(tree, ast.Subscript)]
        for line, node in asked:
            if isinstance(node, ast.Constant) and node.value in NORMS:
                yield f"{path}:{line} {node.value!r}"


def _sides(comparison: ast.Compare) -> Iterator[ast.expr]:
    """What is compared, the members of a written-out tuple or set each."""
    for side in (comparison.left, *comparison.comparators):
        yield from side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]


def _find_norm_checks(modules: Modules) -> Iterator[str]:
    for path, tree in _outside_threat(modules):
        checks = [(case.lineno, case.cls) for case in _walk(tree, ast.MatchClass)]
        for call in _walk(tree, ast.Call):
            if _last_name(call.func) in ("isinstance", "issubclass") and len(call.args) > 1:
                checks.append((call.lineno, call.args[1]))
        for line, classes in checks:
            asked = {_last_name(c) for c in ast.walk(classes)} & set(BALLS)
            yield from (f"{path}:{line} {ball}" for ball in sorted(asked))


def _outside_threat(modules: Modules) -> Iterator[tuple[str, ast.Module]]:
    return ((path, tree) for path, tree in modules.items() if Path(path).name != "threat.py")


# ------------------------------------------------------------------------------------------ probes


def _find_probes(modules: Modules, of: set[str] | None) -> Iterator[str]:
    """getattr and hasattr `of` what is called so, as `attack` and `self.attack`, or of anything."""
    for path, tree in modules.items():
        for call in _walk(tree, ast.Call):
            if _last_name(call.func) not in PROBES or not call.args:
                continue
            if of is None or _last_name(call.args[0]) in of:
                yield f"{path}:{call.lineno} {ast.unparse(call)}"


# ------------------------------------------------------------------------------------------- names


def _find_participles(modules: Modules) -> Iterator[str]:
    for path, tree in modules.items():
        for function in _functions(tree):
            if re.match(r"_[a-z]", function.name):
                first = function.name[1:].split("_")[0]
                if first in PARTICIPLES or first.endswith(("ed", "en")):
                    yield f"{path}:{function.lineno} {function.name}"


def _find_vague_variables(modules: Modules) -> Iterator[str]:
    """One for each function (or module) and name that it binds or takes."""
    for path, tree in modules.items():
        scopes: list[tuple[str, ast.AST]] = [("module", tree)]
        scopes += [(function.name, function) for function in _functions(tree)]
        scopes += [("lambda", each) for each in _walk(tree, ast.Lambda)]
        for name, scope in scopes:
            bound = sorted(set(_bound(scope)) & set(VAGUE))
            yield from (f"{path}:{getattr(scope, 'lineno', 1)} {name}: {v}" for v in bound)


def _bound(scope: ast.AST) -> Iterator[str]:
    """The names that a function or module binds itself, inner functions and lambdas aside."""
    ahead = list(ast.iter_child_nodes(scope))
    while ahead:
        node = ahead.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        if not isinstance(node, Function | ast.Lambda):
            ahead += ast.iter_child_nodes(node)


# ------------------------------------------------------------------------------------------- print


def _walk(tree: ast.AST, kind: type[N]) -> Iterator[N]:
    return (node for node in ast.walk(tree) if isinstance(node, kind))


def _functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def _last_name(node: ast.AST) -> str:
    """`attack` of attack, self.attack and cell.attack."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def show(counts: Counts) -> Iterator[str]:
    """The table, and under it the places of what has few or is told by file."""
    width = max(len(what) for what in counts)
    yield from (f"{what:<{width}}  {len(places):>5}" for what, places in counts.items())
    for what, places in counts.items():
        yield f"\n{what}: {len(places)}"
        by_file = Counter(place.split(":")[0] for place in places)
        short = what.startswith(("lines", "uses of Any", "norms by name", "variables"))
        told = [f"{n:>4}  {path}" for path, n in by_file.most_common()] if short else places
        yield from (f"  {line}" for line in told)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("root", nargs="?", type=Path, default=here, help="a checkout")
    parser.add_argument("--json", action="store_true", help="counts and places as JSON")
    args = parser.parse_args()
    counts = count(args.root)
    if args.json:
        told = {what: {"count": len(places), "places": places} for what, places in counts.items()}
        print(json.dumps(told, indent=2))
    else:
        print(*show(counts), sep="\n")


if __name__ == "__main__":
    main()
