"""retroact: retrofit the activations of a trained network, attack it, and say what it is worth.

import retroact as ra

net = ra.load("lenet-mnist")
hard = ra.retrofit(net, ra.JumpReLU(kappa=1.0))
record = ra.evaluate(hard, ra.data("mnist[:1000]"), ra.PGD(steps=40), ra.Linf(0.1))
print(ra.robust_accuracy(record))
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    name.asname or name.name: (node.module, name.name)
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for name in node.names
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"retroact has no {name!r}; {_cure_of(name)}")
    module, inner = _HOMES[name]
    value = getattr(import_module(str(module)), inner)
    globals()[name] = value
    return value


def _cure_of(name: str) -> str:
    """The nearest public names, or where all of them are listed."""
    from difflib import get_close_matches

    folded = {public.lower(): public for public in __all__}
    near = [folded[found] for found in get_close_matches(name.lower(), folded)]
    return f"did you mean {' or '.join(near)}?" if near else "dir(retroact) has what it has"


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
