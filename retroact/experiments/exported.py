"""A store for other programs: Parquet, a row for each example of each cell; or JSON (`carried`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retroact.evaluation.record import NORMS
from retroact.experiments.carried import write_json
from retroact.experiments.store import Row, Store
from retroact.files import replacing

FACTS = (
    "index",
    "label",
    "target",
    "clean",
    "adversarial",
    "queries",
    "gradients",
    "zero_gradients",
    "nonfinite",
)


def export(store: Store, path: str | Path) -> int:
    """Writes the store to `path`, whole or not at all; returns how many cells that were.

    .parquet has a row for each example, with its cell's key and fields beside its facts and without
    images; .json has cells and facts as `--facts` reads them. Raises ValueError for another suffix.
    """
    path = Path(path)
    writers = {".parquet": _write_parquet, ".json": write_json}
    if path.suffix.lower() not in writers:
        raise ValueError(f"cannot write {str(path)!r}; expected a name in .parquet or .json")
    with replacing(path) as draft:
        return writers[path.suffix.lower()](store, draft)


def _write_parquet(store: Store, path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n, schema = 0, _schema()
    with pq.ParquetWriter(path, schema) as writer:
        for batch in _batches(store):
            columns = {
                name: [value for cell in batch for value in cell[name]] for name in schema.names
            }
            writer.write_table(pa.table(columns, schema=schema))
            n += len(batch)
    return n


def _batches(store: Store, most: int = 50_000) -> Iterator[list[dict[str, Any]]]:
    """Cells in groups of about so many examples, so that files are neither many parts nor large in
    memory."""
    batch: list[dict[str, Any]] = []
    examples = 0
    for row in store.each():
        batch.append(_columns(store, row))
        examples += row.n
        if examples >= most:
            yield batch
            batch, examples = [], 0
    if batch:
        yield batch


def _columns(store: Store, row: Row) -> dict[str, Any]:
    """A cell's columns, each as long as it has examples."""
    record = store.read(row.key)
    said = {"key": row.key, "written": row.written, **vars(row.fields)}
    columns: dict[str, Any] = {name: [value] * len(record) for name, value in said.items()}
    columns |= {name: getattr(record, name).tolist() for name in FACTS}
    for what in ("distance", "size"):
        values = np.asarray(getattr(record, what))
        columns |= {f"{what}_{norm}": values[:, i].tolist() for i, norm in enumerate(NORMS)}
    return columns


def _schema() -> Any:
    import pyarrow as pa

    from retroact.experiments.fields import CellFields

    numbers = {"eps": pa.float64(), "beta": pa.float64(), "seed": pa.int64(), "schema": pa.int64()}
    text = pa.dictionary(pa.int32(), pa.string())
    said = [("key", text), ("written", text)]
    said += [(name, numbers.get(name, text)) for name in vars(CellFields())]
    facts = [(name, pa.bool_() if name == "nonfinite" else pa.int64()) for name in FACTS]
    sizes = [(f"{what}_{norm}", pa.float32()) for what in ("distance", "size") for norm in NORMS]
    return pa.schema([*said, *facts, *sizes])
