"""Damaged files and texts, one after the other: each is read, or refused with one sentence.

    python bench/faults/inputs.py --n 200 --seed 0

Every format that is read is written once and then hurt `n` times: bits and bytes changed, cut,
doubled, zeroed, numbers and names of its headers and of its JSON replaced; packed files are packed
again, so that their checksums hold. "wrong" must be 0: an error that is not ours, over 2 CPU
seconds, or over 1 GB of memory more.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import random
import resource
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import retroact as ra
from retroact.activations.files import keep as keep_numbers
from retroact.attacks.fgsm import FGSM
from retroact.auditing.attack_run import Conditions
from retroact.auditing.baseline import StoredSide
from retroact.auditing.battery import Battery
from retroact.checkpoint import load, save
from retroact.crafting.threat import Linf, ThreatModel
from retroact.experiments.carried import as_json, read_json
from retroact.experiments.cell import Cell, Model
from retroact.experiments.store import Store
from retroact.experiments.sweep import sweep
from retroact.nets import foreign, zoo
from retroact.nets.data import DataSlice, data
from retroact.spec import parse
from retroact.training.resuming import State, resume, write_checkpoint

SECONDS, BYTES, LETTERS = 2.0, 2**30, 3000
"""What reading may cost of CPU and of memory, and how long a sentence may be."""

Chance = random.Random


@dataclass(frozen=True)
class Kind:
    """A format: `make` writes a good file, or several, into a folder, `read` reads what lies there.

    `heavy` ones are slow to read, and hurt less often.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    heavy: bool = False


def main() -> None:
    """Prints a line of a table for each format."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="")
    args = parser.parse_args()
    print("| format | tried | read | refused with a sentence | wrong |\n|---|---|---|---|---|")
    for kind in KINDS:
        if args.kind in kind.name:
            n = max(1, args.n // 5) if kind.heavy else args.n
            ends = try_kind(kind, n, args.seed)
            told = Counter(end.split(":")[0] for end in ends)
            print(f"| {kind.name} | {n} | {told['read']} | {told['sentence']} | {told['wrong']} |")
            for end in sorted({end for end in ends if end.startswith("wrong")}):
                print(f"    {end}")


def try_kind(kind: Kind, n: int, seed: int) -> list[str]:
    """How reading ended: "read", "sentence: …" or "wrong: …", for each of n damaged files."""
    chance = Chance(f"{kind.name} {seed}")
    with tempfile.TemporaryDirectory() as name, _quietly():
        folder = Path(name)
        kind.make(folder)
        kind.read(folder)  # a good one is read
        files = {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        return [_try(kind, folder, files, chance) for _ in range(n)]


def _try(kind: Kind, folder: Path, files: dict[Path, bytes], chance: Chance) -> str:
    path = chance.choice(sorted(files))
    path.write_bytes(hurt(files[path], path, chance))
    try:
        return judge(lambda: kind.read(folder))
    finally:
        for left in set(folder.rglob("*")) - files.keys():
            if left.is_file():
                left.unlink()
        path.write_bytes(files[path])


def judge(read: Callable[[], object]) -> str:
    """How reading ends."""
    gc.freeze()  # else a collection may go through all that a long test run holds, for seconds
    began, before = time.process_time(), _peak()
    try:
        read()
        end = "read"
    except Exception as e:
        text = f"{type(e).__name__}: {e}"
        end = f"sentence: {text}" if is_a_sentence(e) else f"wrong: {text} {_where(e)}"
    took, grown = time.process_time() - began, _peak() - before
    gc.unfreeze()
    if took > SECONDS or grown > BYTES:
        return f"wrong: {took:.1f} s, {grown / 2**20:.0f} MB more, then {end}"
    return end


def is_a_sentence(e: Exception) -> bool:
    """Whether an error is one of the house, or a plain one that the house raised with a text."""
    ours = type(e).__module__.startswith("retroact.")
    plain = type(e) in (ValueError, TypeError, KeyError) and "/retroact/" in _where(e)
    said = str(e)
    return (ours or plain or isinstance(e, OSError)) and " " in said and len(said) < LETTERS


def _where(e: Exception) -> str:
    last = traceback.extract_tb(e.__traceback__)[-1]
    return f"({last.filename}:{last.lineno})"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


# -------------------------------------------------------------------------------------- to hurt one

WORDS = (b"\xff" * 8, b"\0" * 8, b"\x7f\xff\xff\xff", b"null", b"[]", b"{}", b"NaN", b"-1", b'"')
WORDS += (b"1e999", b"9" * 30, b"[" * 80, b"<script>", b"../" * 6)

DEEP: Any = None
for _ in range(200):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (None, [], {}, "", "x" * 100_000, -1, 0, 2**70, 1e308, float("nan"))
VALUES += (True, [None], {"a": None}, DEEP, "Network(", "../../etc/passwd", [2**40], "F32", 1e-300)


def hurt(content: bytes, path: Path, chance: Chance) -> bytes:
    """The same file with one thing wrong, or a few."""
    ways: list[Callable[[bytes, Chance], bytes]] = [hurt_bytes]
    if path.suffix == ".json":
        ways += [hurt_json] * 2
    if path.suffix == ".safetensors":
        ways += [hurt_header] * 2
    if path.suffix in (".npz", ".pt"):
        ways += [hurt_packed] * 2
    return chance.choice(ways)(content, chance)


def hurt_bytes(content: bytes, chance: Chance) -> bytes:
    """Bytes changed, cut, put in, doubled or zeroed, mostly near the beginning or the end."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        n = len(changed)
        near = chance.choice((n, min(n, 64), min(n, 1024)))
        at = min(n, chance.choice((chance.randrange(near + 1), n - chance.randrange(near + 1))))
        to = min(n, at + chance.choice((1, 4, 64, n)))
        word = chance.choice(WORDS)
        some = bytes(chance.randrange(256) for _ in range(4))
        swaps = (some, word, b"", bytes(changed[at:to]) * 2, bytes(min(to - at, 4096)))
        changed[at:to] = chance.choice(swaps)
    return bytes(changed)


def hurt_json(content: bytes, chance: Chance) -> bytes:
    """One value of a JSON replaced by another, removed, or called otherwise."""
    said = [json.loads(content)]
    held: Any = said
    while True:
        key = chance.choice(list(held) if isinstance(held, dict) else range(len(held)))
        deeper = isinstance(held[key], dict | list) and len(held[key]) and chance.random() < 0.8
        if not deeper:
            break
        held = held[key]
    if isinstance(held, dict) and chance.random() < 0.3:
        held[chance.choice(("", "x", key * 2))] = held.pop(key)
    else:
        held[key] = chance.choice(VALUES)
    return json.dumps(said[0]).encode()


def hurt_header(content: bytes, chance: Chance) -> bytes:
    """A safetensors file whose header says something else, or whose numbers are none."""
    length = int.from_bytes(content[:8], "little")
    header, body = content[8 : 8 + length], content[8 + length :]
    if chance.random() < 0.2 and len(body) > 8:  # NaN and infinity, where they may be floats
        at = 4 * chance.randrange(len(body) // 4)
        body = body[:at] + chance.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f")) + body[at + 4 :]
    else:
        header = _hurt_metadata(header, chance)
    return len(header).to_bytes(8, "little") + header + body


def _hurt_metadata(header: bytes, chance: Chance) -> bytes:
    said = json.loads(header)
    told = said.get("__metadata__", {})
    inside = [name for name, text in told.items() if _is_json(text)]
    if inside and chance.random() < 0.6:
        name = chance.choice(inside)
        told[name] = hurt_json(told[name].encode(), chance).decode()
        return json.dumps(said).encode()
    return hurt_json(header, chance)


def _is_json(text: str) -> bool:
    try:
        return bool(json.loads(text)) and text[:1] in "{["
    except ValueError:
        return False


def hurt_packed(content: bytes, chance: Chance) -> bytes:
    """A zip file one of whose members is hurt, with a checksum that holds, packed or not."""
    out = io.BytesIO()
    how = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(io.BytesIO(content)) as good, zipfile.ZipFile(out, "w", how) as bad:
        names = good.namelist()
        chosen = chance.choice(names)
        for name in names:
            member = good.read(name)
            bad.writestr(name, hurt_bytes(member, chance) if name == chosen else member)
    return out.getvalue()


# -------------------------------------------------------------------------------------- the formats


class Small(nn.Module):
    """A network of a few numbers, with a buffer and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.out = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.relu(self.norm(self.up(x.flatten(1)))))
        return out


def _make_weights(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(Small().state_dict(), folder / "w.safetensors")


def _make_pickled(folder: Path) -> None:
    content = {"state_dict": Small().state_dict(), "epoch": 3, "args": {"lr": 0.1, "name": "a"}}
    torch.save(content, folder / "w.pt")


def _read_weights(folder: Path) -> object:
    (path,) = folder.glob("w.*")
    return foreign.fill(Small(), path), foreign.hash_of(path)


def _make_net(folder: Path) -> None:
    net = ra.load("digits-cnn")
    save(
        ra.retrofit(net, ra.calibrate(net, "MeanSparse", "digits/train[:20]")),
        folder / "n.safetensors",
    )


def _make_page(folder: Path) -> None:
    for end in ("json", "safetensors"):
        file = Path(zoo.__file__).parent / "weights" / f"digits-cnn.{end}"
        (folder / file.name).write_bytes(file.read_bytes())


def _state() -> State:
    net = Small()
    return State(net, None, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9))


def _make_npz(folder: Path) -> None:
    x = np.random.default_rng(0).random((20, 6)).astype(np.float32)
    np.savez(folder / "x.npz", x=x, y=np.arange(20) % 3, class_names=np.array(["a", "b", "c"]))


def _pictures(n: int) -> list[bytes]:
    from PIL import Image

    out = []
    for i in range(n):
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(file, ("PNG", "JPEG")[i % 2])
        out.append(file.getvalue())
    return out


def _make_folder(folder: Path) -> None:
    for i, picture in enumerate(_pictures(4)):
        place = folder / "train" / "ab"[i // 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.{('png', 'jpg')[i % 2]}").write_bytes(picture)


def _make_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = folder / "o" / "n"
    place.mkdir(parents=True)
    cells = [{"bytes": picture, "path": None} for picture in _pictures(6)]
    pq.write_table(pa.table({"image": cells, "label": [0, 1, 2] * 2}), place / "train.parquet")


def _read_parquet(folder: Path) -> object:
    kept = os.environ.get("RETROACT_DATA")
    os.environ["RETROACT_DATA"] = str(folder)
    try:
        return _anew(lambda: data("o/n/train[:2]"))
    finally:
        os.environ.pop("RETROACT_DATA")
        os.environ |= {} if kept is None else {"RETROACT_DATA": kept}


def _anew(read: Callable[[], object]) -> object:
    """Reads what `datasets` and we would else remember."""
    import datasets

    from retroact.nets import sources

    for cache in (sources._find, sources._decode):
        cache.cache_clear()
    with tempfile.TemporaryDirectory() as cache_dir:
        before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, cache_dir
        try:
            return read()
        finally:
            datasets.config.HF_DATASETS_CACHE = before


def _make_store(folder: Path) -> None:
    cells = [Cell(Model("digits-cnn"), f"digits[:{n}]", FGSM(), Linf(0.1)) for n in (2, 3)]
    with Store(folder / "s.sqlite") as store:
        sweep(cells, store, keep=1)
        store.put_facts("0" * 16, "Facts()", {"a": [1, 2.5, {"b": None}]}, 1.0)


def _read_store(folder: Path) -> object:
    with Store(folder / "s.sqlite", readonly=True) as store:
        read = [store.read(row.key, images=True) for row in store.rows()]
        return read, list(store.facts()), [row.fields for row in store.rows()]


def _make_old_store(folder: Path) -> None:
    old = Path(__file__).parents[2] / "tests" / "stored" / "store-0.1.0.db"
    (folder / "s.sqlite").write_bytes(old.read_bytes())


def _upgrade_store(folder: Path) -> object:
    with Store(folder / "s.sqlite") as store:
        store.put_facts("0" * 16, "Facts()", {}, 1.0)
    return _read_store(folder)


def _make_facts(folder: Path) -> None:
    _make_store(folder)
    with Store(folder / "s.sqlite") as store:
        (folder / "f.json").write_text(as_json(store))
    (folder / "s.sqlite").unlink()


def _read_facts(folder: Path) -> object:
    with Store(":memory:") as store:
        return read_json(folder / "f.json", store), list(store.rows()), list(store.facts())


def _make_numbers(folder: Path) -> None:
    keep_numbers({"conv1_relu": torch.rand(8), "fc": torch.rand(4)}, folder / "m.safetensors")


def _read_numbers(folder: Path) -> object:
    said = ra.MeanSparse(0.1, file=str(folder / "m.safetensors"))
    return said.numbers_at("conv1_relu"), said.files()


SMALL = Battery(steps=1, targets=1, targeted_steps=1, finish=0, queries=0, trial_steps=0)


def _audit(baseline: Path | None = None) -> ra.Audit:
    return ra.audit(
        "digits-cnn", "JumpReLU(1.0)", "digits[:12]", "Linf(0.1)", battery=SMALL, baseline=baseline
    )


def _make_evidence(folder: Path) -> None:
    ra.write_evidence(_audit(), folder)
    (folder / "audit.html").unlink()  # which nobody reads back


def _make_baseline(folder: Path) -> None:
    ABOUT.clear()
    _audit(folder / "before.json")


def _read_baseline(folder: Path) -> object:
    images, net = data("digits[:12]"), ra.load("digits-cnn")
    side = StoredSide(folder / "before.json", ABOUT[0]) if ABOUT else None
    if side is None:
        known = json.loads((folder / "before.json").read_text())["baselines"]
        ((_, told),) = known.items()
        shares = ("n", "clean", "claimed", "verified")
        ABOUT.append({name: value for name, value in told.items() if name not in shares})
        return _read_baseline(folder)
    return side.read(net, Conditions(images, Linf(0.1), 10))


ABOUT: list[dict[str, Any]] = []  # of the baseline that was written, as nobody may hurt it

TEXTS = (
    "PGD(steps=40, restarts=2)",
    "Linf(8/255)",
    'Network(LeNetLike(), "mnist", (1, 28, 28), (0.1307,), (0.3081,))',
    "Retrofit(activation=PerSite((JumpReLU(0.5), SReLU(2.0))), sites='*')",
    "Cell(Model('digits-cnn', activation=JumpReLU(1.0)), 'digits[:5]', FGSM(), Linf(0.1))",
)
NOTATIONS = ("digits[:100]", "mnist/validation[10:20]", "npz:a/b.npz/test[3:]", "o/n/train")


def _make_texts(texts: tuple[str, ...]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for i, text in enumerate(texts):
            (folder / f"{i}.txt").write_text(text)

    return make


def _read_texts(read: Callable[[str], object]) -> Callable[[Path], object]:
    def read_all(folder: Path) -> object:
        errors = []
        for path in sorted(folder.glob("*.txt")):
            try:
                read(path.read_bytes().decode("utf-8", "replace"))
            except Exception as e:
                errors.append(e)
        if errors:
            raise min(errors, key=is_a_sentence)
        return None

    return read_all


def _read_threat(text: str) -> object:
    return parse(text, ThreatModel)


KINDS = (
    Kind("weights, safetensors", _make_weights, _read_weights),
    Kind("weights, torch.save", _make_pickled, _read_weights),
    Kind("network of `save`", _make_net, lambda f: load(f / "n.safetensors")),
    Kind("network of the zoo", _make_page, lambda f: zoo.load("digits-cnn", f)),
    Kind(
        "checkpoint of training",
        lambda f: write_checkpoint(f, _state(), {"recipe": "R()"}, 3),
        lambda f: resume(f, _state(), {"recipe": "R()"}),
    ),
    Kind("numbers of an activation", _make_numbers, _read_numbers),
    Kind("arrays, .npz", _make_npz, lambda f: _anew(lambda: data(f"npz:{f}/x.npz/train"))),
    Kind(
        "folder of images", _make_folder, lambda f: _anew(lambda: data(f"folder:{f}/train")), True
    ),
    Kind("table of images, parquet", _make_parquet, _read_parquet, True),
    Kind("store", _make_store, _read_store),
    Kind("store of 0.1.0", _make_old_store, _upgrade_store),
    Kind("facts, JSON", _make_facts, _read_facts),
    Kind("evidence", _make_evidence, ra.verify),
    Kind("baseline", _make_baseline, _read_baseline),
    Kind("text of a spec", _make_texts(TEXTS), _read_texts(parse)),
    Kind("text of a threat", _make_texts(("Linf(8/255)", "L2(0.5)")), _read_texts(_read_threat)),
    Kind("text of data", _make_texts(NOTATIONS), _read_texts(DataSlice.read)),
)


if __name__ == "__main__":
    main()
