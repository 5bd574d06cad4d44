"""CIFAR-10 in one file, for a machine that has neither the data set nor `datasets`.

    RETROACT_DATA=… python bench/gpu_pack.py            # writes bench/pack/cifar10.npz and says its
    size

The images stay encoded as they are stored (PNG and JPEG bytes), one after another, and the file is
deflated: nine tenths are JPEG, whose tables are the same in every image. `unpacked` decodes them
and gives the splits that `ra.data("cifar10/train")` and its like give, with the same fingerprints.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from retroact.nets import sources
from retroact.nets.data import DataSlice, Images

NAME = "cifar10"
PACK = Path(__file__).with_name("pack") / f"{NAME}.npz"


class Rows(NamedTuple):
    """The rows of one of the source's own splits, as they are stored."""

    encoded: Sequence[bytes]
    labels: Sequence[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=PACK)
    parser.add_argument(
        "--first", type=int, default=None, help="so many rows of each split (default: all)"
    )
    args = parser.parse_args()
    found, origin, class_names = _stored(args.first)
    pack(args.out, found, origin, class_names)
    print(f"{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB")
    for images in unpacked(args.out):
        print(f"{images!r}, {images.fingerprint[:16]}")


def _stored(first: int | None) -> tuple[dict[str, Rows], str, Sequence[str]]:
    import datasets

    source, folder = sources.find(NAME), Path(os.environ.get("RETROACT_DATA", ""), NAME)
    found = datasets.load_dataset(str(folder) if folder.is_dir() else sources.HUB[NAME])
    features = found["train"].features
    image = next(name for name, feature in features.items() if isinstance(feature, datasets.Image))
    label = next(
        name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)
    )
    raw = found.cast_column(image, datasets.Image(decode=False))
    parts = {split: rows[: first or len(rows)] for split, rows in raw.items()}
    rows = {
        split: Rows([cell["bytes"] for cell in part[image]], part[label])
        for split, part in parts.items()
    }
    return rows, source.origin, source.class_names


def pack(path: Path, found: Mapping[str, Rows], origin: str, class_names: Sequence[str]) -> None:
    """Writes the rows of each split into one file."""
    arrays: dict[str, np.ndarray] = {
        "origin": np.array(origin),
        "class_names": np.array(class_names),
    }
    for split, rows in found.items():
        arrays[f"{split} bytes"] = np.frombuffer(b"".join(rows.encoded), dtype=np.uint8)
        arrays[f"{split} sizes"] = np.array([len(one) for one in rows.encoded], dtype=np.int64)
        arrays[f"{split} labels"] = np.array(rows.labels, dtype=np.int64)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def unpacked(path: Path) -> tuple[Images, Images, Images]:
    """The train, validation and test split, decoded."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    own = {split: _decoded(arrays, split) for split in ("train", "test")}
    sizes = {split: len(pixels) for split, pixels in own.items()}
    made = []
    for part in (DataSlice(NAME, "train"), DataSlice(NAME, "validation"), DataSlice(NAME, "test")):
        split, rows = sources.rows_of(NAME, part.split, sizes)
        images = Images(
            images=torch.from_numpy(own[split][rows].astype(np.float32)).div_(255),
            labels=torch.from_numpy(arrays[f"{split} labels"][rows]),
            index=torch.from_numpy(rows.copy()),
            name=str(part),
            split=part.split,
            classes=len(arrays["class_names"]),
            class_names=tuple(map(str, arrays["class_names"])),
            origin=f"{arrays['origin']}, {split}",
        )
        made.append(images)
    return made[0], made[1], made[2]


def _decoded(arrays: Mapping[str, np.ndarray], split: str) -> np.ndarray:
    """Uint8 (n, 3, height, width)."""
    joined, ends = arrays[f"{split} bytes"].tobytes(), arrays[f"{split} sizes"].cumsum()
    starts = np.concatenate([[0], ends[:-1]])
    pictures = [
        np.asarray(Image.open(io.BytesIO(joined[a:b]))) for a, b in zip(starts, ends, strict=True)
    ]
    return np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))


if __name__ == "__main__":
    main()
