"""What the cells of a sweep need on another machine, and their records as a file holds them."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from retroact.evaluation.record import Record, from_bytes, images_to_bytes, to_bytes
from retroact.experiments.cell import Brought, Cell, Model
from retroact.nets.data import Images, bring, data
from retroact.spec import key


def name_of(group: Sequence[Cell], *how: object) -> str:
    """Names the records of locked cells that run together: 32 hex digits of a SHA-256 over their
    keys and how they run."""
    said = "|".join([*(key(cell) for cell in group), *map(repr, how)])
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def brought_for(group: Sequence[Cell]) -> Iterator[tuple[str, Callable[[], object]]]:
    """The images and the networks behind the names of locked cells that run together."""
    cell = group[0]
    if not cell.data.startswith("yours:"):  # these are luggage
        yield f"data {cell.data} {cell.pixels}", partial(data, cell.data)
    for model in {_plain(m) for m in (cell.model, cell.source) if m is not None}:
        yield f"net {model}", partial(Brought.of, model)


def _plain(model: Model) -> Model:
    return replace(model.plain, weights=model.weights)


def receive(thing: Images | Brought) -> None:
    """Makes known in this process what has been brought."""
    if isinstance(thing, Images):
        bring(thing)
    else:
        thing()


def pack(records: Sequence[Record]) -> bytes:
    """Records as the bytes of a zip file, which has a checksum for each."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for i, record in enumerate(records):
            file.writestr(f"{i}.record", to_bytes(record))
            images = images_to_bytes(record)
            if images is not None:
                file.writestr(f"{i}.images", images)
    return packed.getvalue()


def unpack(data: bytes) -> list[Record]:
    """The records that `pack` wrote. Raises ValueError for anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            parts = {name: file.read(name) for name in file.namelist()}
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as e:
        raise ValueError(f"expected the file of some records, got something else: {e}") from None
    count = sum(name.endswith(".record") for name in parts)
    return [from_bytes(parts[f"{i}.record"], parts.get(f"{i}.images")) for i in range(count)]
