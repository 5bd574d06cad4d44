"""Files that are written whole or not at all; everyone may use this, and it needs no torch.

with replacing("net.json") as draft:
    draft.write_text(page)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CheckpointError(ValueError):
    """A file that is no saved network and no checkpoint of training, or not the expected one."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write to, with the same suffix; what lies there takes its place.

    It does so at once, when the block ends and the bytes are on the disk; where the block fails,
    `path` is as it was and nothing lies beside it. Raises OSError as the file system does.
    """
    path = Path(path)
    draft = path.with_name(f".{os.getpid()}-{threading.get_ident()}.{path.name}")
    try:
        yield draft
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
