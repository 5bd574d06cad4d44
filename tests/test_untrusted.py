"""What comes from elsewhere is read rightly, or refused with one sentence: weights, metadata,
labels, facts, tables, folders, pictures, texts."""

import base64
import hashlib
import importlib.util
import io
import json
import resource
import sys
import time
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import retroact as ra
from retroact import checkpoint
from retroact.attacks.fgsm import FGSM
from retroact.auditing.evidence import Evidence, EvidenceError
from retroact.crafting.oracle import is_out_of_memory
from retroact.crafting.threat import Linf, ThreatModel
from retroact.experiments import sealed
from retroact.experiments.carried import as_json, read_json
from retroact.experiments.cell import Cell, Model
from retroact.experiments.facts import measured
from retroact.experiments.fields import CellFields
from retroact.experiments.store import Store, StoreError
from retroact.experiments.sweep import sweep
from retroact.files import CheckpointError, parse_json, parse_object, read_object
from retroact.nets import foreign, sources, zoo
from retroact.nets.data import DataSlice, Images, data
from retroact.nets.sources import DataError
from retroact.nets.zoo import ZooError
from retroact.reports.tables import lines, markdown, markdown_table
from retroact.spec import QUOTED, SpecError, key, keys, known, parse, show, spec

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("inputs", ROOT / "bench" / "faults" / "inputs.py")
assert SPEC is not None and SPEC.loader is not None
inputs = importlib.util.module_from_spec(SPEC)
sys.modules["inputs"] = inputs
SPEC.loader.exec_module(inputs)

CELL = Cell(Model("digits-cnn"), "digits[:3]", FGSM(), Linf(0.1))


class Net(nn.Module):
    """With a mask that is meant to be infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.out = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.up(x.flatten(1))).relu())


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def at(name, value):
    """The net's weights with one entry of one tensor replaced, or all of it by another type."""
    state = Net().state_dict()
    if isinstance(value, torch.dtype):
        state[name] = (state[name] != 0).to(value)
    else:
        state[name].view(-1)[0] = value
    return state


# ----------------------------------------------------------------------------------------- weights

BAD = [
    ("up.weight", torch.nan, r"up\.weight has 1 of 512 entries that are NaN or infinite"),
    ("out.bias", -torch.inf, r"out\.bias has 1 of 10"),
    ("norm.running_var", torch.inf, r"norm\.running_var has 1 of 8"),
    ("mask", torch.inf, r"mask has 1 of 2"),
    ("up.weight", torch.int64, r"up\.weight is torch\.int64, expected torch\.float32"),
    ("norm.running_mean", torch.bool, r"norm\.running_mean is torch\.bool"),
]


@pytest.mark.parametrize(("name", "value", "says"), BAD)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_that_are_no_finite_floats_are_refused_by_name(tmp_path, suffix, name, value, says):
    path, state = tmp_path / f"w.{suffix}", at(name, value)
    save_file(state, path) if suffix == "safetensors" else torch.save({"model": state}, path)
    with pytest.raises(foreign.WeightsError, match=says):
        foreign.fill(Net(), path)


@pytest.mark.parametrize(("name", "value", "says"), BAD)
def test_so_are_those_of_a_saved_network(tmp_path, name, value, says):
    net = ra.Classifier(Net(), shape=(1, 8, 8))
    path = ra.save(net, tmp_path / "n.safetensors")
    assert ra.load(path, into=Net()).module.mask[1] == -torch.inf
    with torch.no_grad():
        net.module.load_state_dict(at(name, value) if name != "mask" else at(name, torch.nan))
    if isinstance(value, torch.dtype):
        *inner, last = name.split(".")
        holder = net.module.get_submodule(".".join(inner))
        delattr(holder, last)
        holder.register_buffer(last, at(name, value)[name])
    path = ra.save(net, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=says):
        ra.load(path, into=Net())


def test_a_network_of_the_zoo_is_refused_too(tmp_path):
    net = zoo.NETWORKS["digits-cnn"]()
    with torch.no_grad():
        next(net.parameters()).view(-1)[3] = torch.nan
    zoo.write(net, replace(zoo.entry("digits-cnn"), name="mine"), tmp_path)
    with pytest.raises(ZooError, match="1 of .* entries that are NaN"):
        zoo.load("mine", tmp_path)


def test_the_numbers_of_an_activation_are_finite_floats(tmp_path):
    for bad in (torch.tensor([torch.nan]), torch.tensor([1])):
        save_file({"a": bad}, tmp_path / "m.safetensors")
        with pytest.raises(SpecError, match="means of site 'a' .* are no finite floats"):
            ra.MeanSparse(0.1, file=str(tmp_path / "m.safetensors")).numbers_at("a")


def test_a_hash_is_checked_where_it_is_known_and_told_where_it_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nets_of_mine.py").write_text(
        "from torch import nn\nbuild = lambda: nn.Linear(4, 2)"
    )
    torch.save(nn.Linear(4, 2).state_dict(), "w.pt")
    found = hashlib.sha256(Path("w.pt").read_bytes()).hexdigest()
    told = ra.load("nets_of_mine:build", weights="w.pt").notes
    assert any(found in note for note in told)
    Path("w.pt.sha256").write_text(f"{found}  w.pt\n")
    assert not any(found in note for note in ra.load("nets_of_mine:build", weights="w.pt").notes)
    Path("w.pt.sha256").write_text(f"{found[::-1]}  w.pt\n")
    with pytest.raises(ZooError, match=f"has SHA-256 {found}, w.pt.sha256 says {found[::-1]}"):
        ra.load("nets_of_mine:build", weights="w.pt")
    path = ra.save(ra.load("digits-cnn"), "n.safetensors")
    saved = hashlib.sha256(path.read_bytes()).hexdigest()
    assert any(saved in note for note in ra.load(path).notes)
    assert ra.load("digits-cnn").notes == ()  # its page knows it


def test_the_command_line_prints_a_hash(call):
    ra.save(ra.load("digits-cnn"), "n.safetensors")
    code, _, err = call(
        "attack", "n.safetensors", "FGSM", "--threat", "Linf(0.1)", "--data", "digits[:2]"
    )
    assert code == 0
    assert hashlib.sha256(Path("n.safetensors").read_bytes()).hexdigest() in err


def test_a_zoo_of_ones_own_that_shadows_a_shipped_net_says_so(tmp_path, monkeypatch, call):
    monkeypatch.setenv("RETROACT_ZOO", str(tmp_path))
    page = zoo.entry("digits-cnn")
    torch.manual_seed(1)
    zoo.write(zoo.NETWORKS["digits-cnn"](), page, tmp_path)
    (told,) = ra.load("digits-cnn").notes
    assert str(tmp_path) in told and "other weights" in told
    assert told in call("list", "nets")[2]
    zoo.write(ra.load("digits-cnn", ), replace(page, name="mine"), tmp_path)  # fmt: skip
    assert ra.load("mine").notes == ()


# ---------------------------------------------------------------------------------------- metadata

DEEP = json.loads("[" * 60 + "]" * 60)
METADATA = [
    *("null", "[]", "3", '"text"', "", "{", "[" * 100_000, '{"a":' * 60 + "1" + "}" * 60),
    '{"format": "1"}',
    '"' + "x" * 2**26 + '"',
]


@pytest.mark.parametrize("said", METADATA, ids=lambda said: said[:12])
def test_metadata_that_are_none_are_one_sentence(tmp_path, said):
    path = tmp_path / "n.safetensors"
    save_file({"module.a": torch.ones(1)}, path, {"retroact": said})
    with pytest.raises(CheckpointError, match="truncated or no safetensors file") as caught:
        ra.load(path)
    assert len(str(caught.value)) < 600
    assert checkpoint.code_of(path) == ""
    for text in (said, said.encode()):
        with pytest.raises(ValueError, match="expected"):
            parse_object(text) if said != '{"format": "1"}' else parse_object("expected")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What a saved network's file says, and its tensors."""
    path = ra.save(
        ra.retrofit(ra.load("digits-cnn"), "JumpReLU(1.0)"),
        tmp_path_factory.mktemp("page") / "n.safetensors",
    )
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["retroact"]), load_file(path)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
FEW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MANY = settings(FEW, max_examples=200)


def change_page(page, tmp_path, word, value):
    said, tensors = page
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path, {"retroact": json.dumps(said | {word: value})})
    check_end(lambda: ra.load(path))


WORDS = st.sampled_from(sorted(checkpoint.Page.__annotations__))


@FEW
@given(word=WORDS, value=anything)
def test_any_metadata_of_a_network_are_read_or_one_sentence(page, tmp_path, word, value):
    change_page(page, tmp_path, word, value)


@pytest.mark.slow
@pytest.mark.long
@MANY
@given(word=WORDS, value=anything)
def test_many_metadata_of_a_network_are_read_or_one_sentence(page, tmp_path, word, value):
    change_page(page, tmp_path, word, value)


def test_a_file_cannot_make_room_for_a_network_that_it_does_not_hold(page, tmp_path):
    said, tensors = page
    for network in (
        "Network(WideResNet(depth=34, widen=1000), 'cifar10', (3, 32, 32))",
        "Network(WideResNet(depth=6004), 'cifar10', (3, 32, 32))",
        "Network(PreActResNet18(width=1000000000), 'cifar10', (3, 32, 32))",
    ):
        save_file(
            tensors,
            tmp_path / "n.safetensors",
            {"retroact": json.dumps(said | {"network": network})},
        )
        began, before = time.process_time(), peak()
        with pytest.raises(CheckpointError):
            ra.load(tmp_path / "n.safetensors")
        assert time.process_time() - began < 2 and peak() - before < 2**28


def test_a_page_of_the_zoo_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"")
    good = vars(zoo.entry("digits-cnn"))
    for said in (*METADATA[:-1], json.dumps(good | {"network": None}), json.dumps(good | {"x": 1})):
        (tmp_path / "a.json").write_text(said)
        with pytest.raises(ZooError, match="is no page of a net"):
            zoo.load("a", tmp_path)


def test_evidence_that_is_none_is_one_sentence(tmp_path):
    for said in METADATA[:-2]:
        for name in ("audit.json", "evidence.json"):
            (tmp_path / name).write_text(said)
        with pytest.raises(EvidenceError, match="is no evidence of an audit"):
            Evidence.read(tmp_path)


# ------------------------------------------------------------------------------- labels and arrays


@pytest.mark.parametrize("label", [2**20, 2**40, 2**62])
def test_a_huge_label_is_refused_before_anything_of_its_size_is_made(tmp_path, label):
    x, y = np.zeros((3, 4), np.float32), np.array([0, 1, label])
    before = peak()
    with pytest.raises(ValueError, match=r"below 1,048,576, got 0 to .*np\.unique"):
        Images.of(x, y, shape=(4,))
    np.savez(tmp_path / "x.npz", x=x, y=y)
    with pytest.raises(DataError, match="below 1,048,576"):
        data(f"npz:{tmp_path}/x.npz/train")
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"image": [[0]] * 3, "label": y.tolist()})
    with pytest.raises(DataError, match="below 1,048,576"):
        sources._class_names(datasets.Value("int64"), {"train": table}, "label")
    assert peak() - before < 2**28


def test_arrays_are_unpacked_within_their_size_and_as_they_say(tmp_path):
    path = tmp_path / "x.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
        packed.open("x.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (257 * 2**20,)}
        )
        for _ in range(257):
            file.write(bytes(2**20))
    before = peak()
    with pytest.raises(DataError, match=r"expected at most 268,435,456 bytes .* got 269,"):
        data(f"npz:{path}")
    for shape, says in (((2**50,), "says that it is"), ((-1,), "says that it is")):
        with zipfile.ZipFile(path, "w") as packed, packed.open("x.npy", "w") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": shape}
            )
        with pytest.raises(DataError, match=says):
            data(f"npz:{path}")
    assert peak() - before < 2**28


# --------------------------------------------------------------------------------- facts and stores


@spec
class UntrustedForATest:
    n: int = 1

    def __call__(self):
        return {"n": self.n}


@pytest.fixture
def facts(tmp_path):
    """A good file of facts, as its entries, and where to write others."""
    with Store(tmp_path / "a.sqlite") as store:
        sweep([CELL], store)
        measured(UntrustedForATest(), store)
        return json.loads(as_json(store)), tmp_path / "f.json"


def refused(path, entries, says):
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    with Store(":memory:") as store:
        with pytest.raises(ValueError, match=f"expected a JSON list of facts.*{says}"):
            read_json(path, store)
        assert not store.rows() and not list(store.facts())


def test_facts_have_limits_and_are_held_against_their_keys(facts):
    entries, path = facts
    (numbers,) = (e for e in entries if "facts" in e)
    (cell,) = (e for e in entries if "record" in e)
    bomb = base64.b64encode(zlib.compress(bytes(2**28 + 1), 9)).decode()
    before = peak()
    refused(path, [cell | {"record": bomb}], "at most 268,435,456, got more")
    assert peak() - before < 2**30
    refused(path, [numbers | {"facts": {"a": DEEP}}], "at most 50 levels")
    refused(path, [numbers, cell | {"key": "0" * 16}], "is not the key of Cell")
    refused(path, [cell | {"key": "../../x"}], "keys of 16 hex digits")
    refused(path, [cell | {"fields": cell["fields"] | {"attack": "PGD()"}}], "calls its attack")
    refused(path, [numbers | {"seconds": float("nan")}], "no print, or no seconds")
    refused(path, {"a": 1}, "no list of objects")
    refused(path, "[\n" + json.dumps(numbers) + ",\n", "ends in the middle")
    refused(path, "x" * (2**25 + 1), "at most 33,554,432 bytes")
    with pytest.raises(ValueError, match="there is no file"):
        read_json(path.parent, Store(":memory:"))


def test_a_file_with_a_line_for_each_entry_may_be_as_long_as_it_likes(facts):
    entries, path = facts
    lines = [json.dumps(e) for e in entries]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    with Store(":memory:") as store:
        assert read_json(path, store) == 2
        assert [json.loads(line) for line in lines] == json.loads(as_json(store))


def test_a_row_under_another_ones_key_is_refused_when_it_is_asked_for(tmp_path):
    asked = key(CELL.locked())
    with Store(tmp_path / "s.sqlite") as store:
        (record,) = sweep([replace(CELL, threat=Linf(0.2))], store)
        (row,) = store.rows()
        store.put(asked, row.cell, CellFields(), record)
        with pytest.raises(StoreError, match="is filed under the key of"):
            sweep([CELL], store)
        from retroact.experiments.facts import locked_key

        store.put_facts(locked_key(UntrustedForATest()), "UntrustedForATest(n=2)", {"n": 2}, 1.0)
        with pytest.raises(StoreError, match=r"UntrustedForATest\(n=2\).* is filed under"):
            measured(UntrustedForATest(), store)


def test_numbers_that_are_too_deep_are_neither_written_nor_read(tmp_path):
    deep = {"a": DEEP}
    with Store(tmp_path / "s.sqlite") as store:
        with pytest.raises(StoreError, match="could not write .* at most 50 levels"):
            store.put_facts("0" * 16, "Facts()", deep, 1.0)
        with store.file.writing() as db:
            said = ("1" * 16, "Facts()", "2026-01-01", 1.0, json.dumps(deep))
            sealed.insert_facts(db, said)
        with pytest.raises(StoreError, match="at most 50 levels"):
            store.read_facts("1" * 16)


def test_every_key_that_a_spec_has_had_is_among_its_keys():
    assert key(CELL) in keys(CELL)
    assert key(CELL, {FGSM: 7}) not in keys(CELL)


# ------------------------------------------------------------------------------ tables and folders


def picture(shape=(8, 8), orientation=None, form="PNG"):
    from PIL import Image

    file, image = (
        io.BytesIO(),
        Image.fromarray(np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape)),
    )
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(file, form, exif=exif)
    return file.getvalue()


def test_a_table_may_not_name_files_outside_its_folder(tmp_path):
    home, other = tmp_path / "home", tmp_path / "other"
    for folder in (home, other):
        folder.mkdir()
        (folder / "a.png").write_bytes(picture())
    for named in (other / "a.png", "../other/a.png", "/etc/passwd"):
        with pytest.raises(DataError, match="names a file outside its folder"):
            sources._decode_cells([{"bytes": None, "path": str(named)}], np.arange(1), [home])
    (home / "pipe").mkdir()
    with pytest.raises(DataError, match="is no file"):
        sources._decode_cells([{"bytes": None, "path": "pipe"}], np.arange(1), [home])
    for named in (home / "a.png", "a.png"):
        cells = [{"bytes": None, "path": str(named)}]
        assert sources._decode_cells(cells, np.arange(1), [home]).shape == (1, 1, 8, 8)


def test_a_parquet_may_not_name_files_outside_its_folder(tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    home = tmp_path / "home" / "o" / "n"
    home.mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(picture())
    cells = [{"bytes": None, "path": str(tmp_path / "secret.png")}] * 10
    pq.write_table(pa.table({"image": cells, "label": [0, 1] * 5}), home / "train.parquet")
    monkeypatch.setenv("RETROACT_DATA", str(tmp_path / "home"))
    with pytest.raises(DataError, match=r"outside its folder, .*secret\.png"):
        data("o/n/train[:1]")


def test_a_folder_that_is_none_of_images_is_refused_at_once(tmp_path):
    deep = tmp_path / "deep"
    for i in range(300):
        (deep / str(i) / "a" / "b").mkdir(parents=True)
    texts = tmp_path / "texts" / "a"
    texts.mkdir(parents=True)
    for i in range(30):
        (texts / f"{i}.txt").touch()
    (texts / "one.png").write_bytes(picture())
    for folder in (deep, texts.parent, Path(sys.prefix), Path("/")):
        began = time.process_time()
        with pytest.raises(DataError, match="folders that were looked at are images"):
            data(f"folder:{folder}")
        assert time.process_time() - began < 2


def test_exif_orientation_is_applied():
    from PIL import Image

    for form in ("PNG", "JPEG"):
        flat = sources._pixels({"bytes": picture((8, 16), form=form), "path": None}, 0)
        turned = sources._pixels({"bytes": picture((8, 16), 6, form), "path": None}, 0)
        assert turned.shape == (1, 16, 8) and np.array_equal(turned[0], np.rot90(flat[0], -1))
    held = Image.open(io.BytesIO(picture((8, 16), 6)))
    images = Images.of([held, held], [0, 1])
    assert images.images.shape == (2, 1, 16, 8)


def test_a_picture_of_billions_of_pixels_is_not_unpacked():
    from PIL import Image

    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    assert len(file.getvalue()) < 100_000
    before = peak()
    with pytest.raises(DataError, match=r"mode 1|20,000 x 20,000|cannot be decoded"):
        sources._pixels({"bytes": file.getvalue(), "path": None}, 0)
    assert peak() - before < 2**27


# ----------------------------------------------------------------------------------- texts, reports


def test_markdown_has_no_html_and_no_lines_of_others(tmp_path):
    evil = "a<script>alert(1)</script>|b\n# c"
    with Store(tmp_path / "s.sqlite") as store:
        (record,) = sweep([CELL], store)
        store.put(
            "f" * 16, "Cell()", CellFields(net=evil, attack=evil, threat=evil, data=evil), record
        )
        text = markdown(lines(store, "f*"))
    assert "<script" not in text and "&lt;script" in text and "\n# c" not in text
    assert "<img" not in markdown_table(["<img>"], [["<img src=x>"]])
    report = tmp_path / "r.md"
    with Store(tmp_path / "s.sqlite") as store:
        ra.report(store, report)
    assert "<script" not in report.read_text()


def test_an_audits_markdown_has_no_html():
    from retroact.reports import audited

    how = {"battery": inputs.SMALL, "claimed": "PGD(steps=2)"}
    made = ra.audit("digits-cnn", "JumpReLU(1.0)", "digits[:12]", "Linf(0.1)", **how)
    evil = replace(
        made, names=made.names._replace(after="a` <img src=x onerror=y>\n# c"), data="<b>"
    )
    text = audited.markdown(evil)
    assert "<" not in text and "&lt;img" in text and "\n# c" not in text


@pytest.mark.parametrize(
    "text",
    [
        "PGD(" + "1," * 6000 + ")",
        "(" * 150 + "1" + ")" * 150,
        "[" * 60 + "]" * 60,
        "PGD(steps=" + "/".join("1" * 100) + ")",
        "-" * 5000 + "1",
        "PGD(" * 60 + ")" * 60,
        "x" * 9999,
        "PGD(steps=0x" + "f" * 5000 + ")",
        "PGD(steps=1e999999)",
        f"PGD(steps='{'y' * 3000}')",
        f"PGD({'z' * 3000}=1)",
        "Linf(eps=1/" + "3" * 400 + ")",
    ],
    ids=lambda text: text[:12],
)
def test_long_and_deep_specs_are_refused_at_once_and_quoted_in_part(text):
    began = time.process_time()
    for kind in (object, ThreatModel):
        with pytest.raises(SpecError) as caught:
            parse(text, kind)
        said = str(caught.value)
        longest = max(len(run) for run in said.replace(",", " ").split())
        told = sum(len(cls.__name__) + 2 for cls in known() if cls.__name__ in said)
        assert len(said) - told < 3 * QUOTED + 100 and longest <= QUOTED + 20
    assert time.process_time() - began < 2


def test_a_text_of_ordinary_depth_is_read():
    said = "Retrofit(PerSite((JumpReLU(0.5), SReLU(2.0))), '*')"
    assert show(parse(said)) == show(parse(show(parse(said))))
    nested = "".join("PerSite((" for _ in range(20)) + "JumpReLU(0.5)" + ",))" * 20
    assert parse(nested) == parse(show(parse(nested)))


def test_errors_of_names_and_data_quote_in_part():
    for read in (
        ra.load,
        data,
        DataSlice.read,
        ra.parse,
        lambda text: ra.audit(text, text, "digits", 1),
    ):
        with pytest.raises(ValueError) as caught:
            read("q" * 4000)
        assert "q" * (QUOTED + 1) not in str(caught.value)


def check_end(read):
    end = inputs.judge(read)
    assert not end.startswith("wrong"), end


PIECES = """PGD Linf L1 Cell Model Network Retrofit PerSite JumpReLU MeanSparse DataSlice Targeted
Processes ( ) (( , = eps steps file 'digits[:3]' '/etc/passwd' 8/255 1e999 -1 None True 0.1 [ ] * **
lambda ."""
pieces = st.sampled_from([*PIECES.split(), " "])
texts = st.lists(pieces, max_size=24).map("".join) | st.text(max_size=60)


@settings(FEW, max_examples=400)
@given(text=texts)
def test_any_text_is_a_spec_or_one_sentence(text):
    check_end(lambda: parse(text))
    check_end(lambda: parse(text, ThreatModel))
    check_end(lambda: DataSlice.read(text))


@pytest.mark.slow
@pytest.mark.long
@settings(FEW, max_examples=3000)
@given(text=texts)
def test_many_texts_are_specs_or_one_sentence(text):
    check_end(lambda: parse(text))
    check_end(lambda: parse(text, ThreatModel))
    check_end(lambda: DataSlice.read(text))


@FEW
@given(eps=anything, steps=anything)
def test_any_value_is_a_field_or_one_sentence(eps, steps):
    check_end(lambda: Linf(eps))
    check_end(lambda: ra.PGD(steps=steps))
    check_end(lambda: DataSlice("digits", "test", eps, steps))


@FEW
@given(content=anything, deep=st.integers(0, 80))
def test_json_is_what_it_says_within_limits(content, deep):
    text = "[" * deep + json.dumps(content, allow_nan=True) + "]" * deep
    try:
        found = parse_json(text)
    except ValueError as e:
        refusal, found = str(e), None
    else:
        refusal = ""
    if refusal:
        assert deep > 40 and "levels" in refusal
    else:
        assert deep <= 50 and json.dumps(found) == json.dumps(json.loads(text))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="there is no file"):
        read_object(tmp_path / "pipe")
    with pytest.raises(foreign.WeightsError, match="no such file"):
        foreign.fill(Net(), tmp_path / "pipe")


# ---------------------------------------------------------------------------------------- memory


def test_onednns_refusal_counts_as_too_little_memory():
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(ValueError("could not create a primitive"))
    net, fed = ra.load("digits-cnn"), []

    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 5:
                raise RuntimeError("could not create a primitive")
            fed.append(len(x))
            return net(x)

    images = data("digits[:12]")
    found = ra.evaluate(Narrow(), images, "PGD(steps=2)", "Linf(0.1)")
    whole = ra.evaluate(net, images, "PGD(steps=2)", "Linf(0.1)", chunk=3)
    assert found == whole and max(fed) <= 5


# ------------------------------------------------------------------------------- every format, hurt

LIGHT = [kind for kind in inputs.KINDS if not kind.heavy]
HEAVY = [kind for kind in inputs.KINDS if kind.heavy]


@pytest.mark.parametrize("kind", LIGHT, ids=lambda kind: kind.name)
def test_a_damaged_file_is_read_or_one_sentence(kind):
    ends = inputs.try_kind(kind, 15, seed=1)
    assert not [end for end in ends if end.startswith("wrong")]
    assert any(end.startswith("sentence") for end in ends)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEAVY, ids=lambda kind: kind.name)
def test_a_damaged_file_that_is_slow_to_read_is_read_or_one_sentence(kind):
    ends = inputs.try_kind(kind, 10, seed=2)
    assert not [end for end in ends if end.startswith("wrong")]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", inputs.KINDS, ids=lambda kind: kind.name)
def test_many_damaged_files_are_read_or_one_sentence(kind):
    ends = inputs.try_kind(kind, 10 if kind.heavy else 30, seed=2)
    assert not [end for end in ends if end.startswith("wrong")]


def test_the_judge_of_readings_knows_a_wrong_one(monkeypatch):
    assert inputs.judge(lambda: 1) == "read"
    assert inputs.judge(lambda: parse("x")).startswith("sentence")
    assert inputs.judge(lambda: [][0]).startswith("wrong: IndexError")
    assert inputs.judge(lambda: json.loads("{")).startswith("wrong: JSONDecodeError")
    assert inputs.judge(lambda: b"x".decode("utf-16")).startswith("wrong: UnicodeDecode")

    monkeypatch.setattr(inputs, "SECONDS", 0.3)

    def slow():
        until = time.process_time() + 0.4
        while time.process_time() < until:
            pass

    assert inputs.judge(slow).startswith("wrong: 0.4")
