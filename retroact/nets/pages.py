"""The pages of the zoo's nets: where they lie, and what they say. Nothing here needs torch, so that
what there is can be listed at once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from retroact.files import read_object
from retroact.spec import quote, shorten


class ZooError(ValueError):
    """A net that is not there, or weights that are not what they should be."""


@dataclass(frozen=True)
class Entry:
    """The page of a net: what it is, how it came to be, and what it was measured to be.

    `accuracy` is clean accuracy on `test` (n examples) and `validation_accuracy` on the held-out
    part of the training set, both from 0 to 1 and measured with the weights as stored (`dtype`).
    `start_sha256` is that of the file that training began from, where the recipe has a `start`.
    """

    name: str
    network: str
    recipe: str
    epochs: int
    seed: int
    data: str
    data_origin: str
    data_fingerprint: str
    test: str
    test_n: int
    accuracy: float
    validation: str
    validation_n: int
    validation_accuracy: float
    command: str
    weights_sha256: str
    start_sha256: str = ""
    dtype: str = "float32"
    device: str = "cpu"
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)


def folders() -> list[Path]:
    """Where nets are looked for, in that order."""
    named = os.environ.get("RETROACT_ZOO", "")
    return ([Path(named).expanduser()] if named else []) + shipped()


def shipped() -> list[Path]:
    """Where the nets lie that retroact comes with."""
    here = Path(__file__).resolve().parent
    return [here / "weights", here.parents[1] / "zoo"]


def names() -> list[str]:
    """The names of the nets whose weights are here."""
    return sorted(
        {p.stem for folder in folders() for p in folder.glob("*.json") if is_whole(folder, p.stem)}
    )


def is_whole(folder: Path, name: str) -> bool:
    """Whether a folder has the page of a net and its weights."""
    # os.path, as a name may be too long for a file's
    return all(os.path.isfile(folder / f"{name}.{end}") for end in ("json", "safetensors"))


def find(name: str) -> Path | None:
    """The folder that a net is loaded from, the first that has it; None where none has."""
    return next((folder for folder in folders() if is_whole(folder, name)), None)


def describe_shadow(name: str) -> tuple[str, ...]:
    """A sentence where a net of RETROACT_ZOO stands before one of the same name that is shipped
    and has other weights."""
    own, other = find(name), next((f for f in shipped() if is_whole(f, name)), None)
    if own is None or other is None or own in shipped():
        return ()
    if read(other, name).weights_sha256 == read(own, name).weights_sha256:
        return ()
    return (
        f"{name} is that of RETROACT_ZOO, {own}, with other weights than the one that retroact"
        f" comes with, in {other}",
    )


def how_to_get(name: str) -> str:
    """What to do where a net is not here."""
    return f"train it with `retroact train {name}`, or point RETROACT_ZOO to a folder that has it"


def read(folder: Path, name: str) -> Entry:
    """The page of a net in that folder; raises ZooError where it is none."""
    path = folder / f"{name}.json"
    try:
        page = Entry(**read_object(path))
        for word in ("name", "network", "weights_sha256", "data", "accuracy", "test_n"):
            _check_kind(word, getattr(page, word))
        return page
    except (OSError, ValueError, TypeError) as e:
        raise ZooError(f"{path} is no page of a net: {shorten(str(e))}; {how_to_get(name)}") from e


def _check_kind(word: str, value: object) -> None:
    kind = {"accuracy": (float, int), "test_n": (int,)}.get(word, (str,))
    if not isinstance(value, kind):
        raise ValueError(f"expected its {word} as {kind[0].__name__}, got {quote(value)}")
