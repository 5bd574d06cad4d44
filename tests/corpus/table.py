"""Prints the corpus as a table: `python tests/corpus/table.py` (two minutes on one core)."""

import time
from collections import Counter

from architectures import ARCHITECTURES
from law import Walk, crafted, walked

HEAD = (
    "network",
    "made by",
    "sites",
    "replaced",
    "left alone",
    "form that attacks run on",
    "seconds",
)


def row(name: str) -> tuple[str, ...]:
    """Sites, what became of them, the form, and how long surgery, proof and three attacks took."""
    started = time.perf_counter()
    walk = walked(name)
    crafted(walk)
    seconds = time.perf_counter() - started
    sites = str(len(walk.found.sites))
    return (
        name,
        walk.architecture.family,
        sites,
        _replaced(walk),
        _left_alone(walk),
        str(walk.on),
        f"{seconds:.1f}",
    )


def _replaced(walk: Walk) -> str:
    kinds = Counter(site.kind for site in walk.found.sites)
    if walk.refused is not None:
        return f"refused: {str(walk.refused).split(';')[0]}"
    return ", ".join(f"{n} {kind}" for kind, n in kinds.items())


def _left_alone(walk: Walk) -> str:
    kinds = Counter(site.kind for site in walk.found.left_alone)
    return ", ".join(f"{n} {kind}" for kind, n in kinds.items())


def main() -> None:
    """The table, as markdown."""
    print("| " + " | ".join(HEAD) + " |")
    print("|---|---|--:|---|---|---|--:|")
    for name in ARCHITECTURES:
        print("| " + " | ".join(row(name)) + " |", flush=True)
    retrofitted = sum(walked(name).hard is not None for name in ARCHITECTURES)
    lean = sum(walked(name).on.form is not None for name in ARCHITECTURES)
    print(
        f"\n{len(ARCHITECTURES)} networks: {retrofitted} retrofitted; attacks run on a lean form of"
        f" {lean}."
    )


if __name__ == "__main__":
    main()
