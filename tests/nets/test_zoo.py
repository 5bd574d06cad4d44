import dataclasses
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from retroact.nets import zoo
from retroact.nets.classifier import Classifier
from retroact.nets.data import data
from retroact.nets.digits_cnn import DigitsCNN
from retroact.nets.zoo import Entry, ZooError
from retroact.spec import show

ROOT = os.environ.get("RETROACT_DATA", "")
WEIGHTS = Path(zoo.__file__).parent / "weights"
PAGE = Entry(
    name="mine",
    network=show(zoo.NETWORKS["digits-cnn"]),
    recipe="Standard(epochs=1)",
    epochs=1,
    seed=0,
    data="digits/train",
    data_origin="scikit-learn, train",
    data_fingerprint="00",
    test="digits",
    test_n=359,
    accuracy=0.5,
    validation="digits/validation",
    validation_n=179,
    validation_accuracy=0.5,
    command="retroact train digits-cnn",
    weights_sha256="",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RETROACT_ZOO", str(tmp_path))
    return tmp_path


# ---------------------------------------------------------------------------------------- shipped


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("digits-cnn", 0.97),
        ("mnist-cnn", 0.98),
        ("mnist-cnn-shifted", 0.97),
        ("lenet-mnist", 0.994),
        ("lenet-mnist-robust", 0.993),
        ("cifar10-cnn1", 0.57),
    ],
)
def test_a_shipped_net_is_what_its_page_says(name: str, least: float) -> None:
    page = zoo.entry(name)
    assert page.accuracy >= least
    assert page.test_n == (359 if name == "digits-cnn" else 10000)
    assert (page.seed, page.command) == (0, f"retroact train {name} --seed 0")
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < zoo.PACKAGE_LIMIT
    if page.data.startswith(("mnist", "cifar10")) and not Path(ROOT, page.test).is_dir():
        pytest.skip(f"no {page.test} under RETROACT_DATA")
    net, test = zoo.load(name), data(page.test)
    with torch.no_grad():
        hits = torch.cat([net(x).argmax(1) for x in test.images.split(2000)]) == test.labels
    # another machine's rounding may move an example that sits on the border
    assert hits.float().mean().item() == pytest.approx(page.accuracy, abs=3 / len(test))
    assert not net.training
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_every_shipped_file_is_on_the_list_and_small() -> None:
    for path in WEIGHTS.glob("*.safetensors"):
        assert path.stem in zoo.NETWORKS
        assert path.stem in zoo.names()
        assert path.stat().st_size < zoo.PACKAGE_LIMIT


def test_a_net_describes_itself_in_a_line() -> None:
    assert zoo.describe("digits-cnn").startswith("digits-cnn: DigitsCNN() on digits/train, 99.")


# --------------------------------------------------------------------------------- write and load


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_loads_back(folder: Path, dtype: str) -> None:
    net = zoo.NETWORKS["digits-cnn"]()
    page = zoo.write(net, dataclasses.replace(PAGE, dtype=dtype), folder)
    again = zoo.load("mine")
    assert zoo.entry("mine") == page
    assert again.name == "mine"
    for name, weight in net.module.state_dict().items():
        assert torch.equal(
            again.module.state_dict()[name], weight.to(getattr(torch, dtype)).float()
        )
    assert sorted(p.name for p in folder.iterdir()) == ["mine.json", "mine.safetensors"]


def test_the_users_zoo_comes_first(folder: Path) -> None:
    zoo.write(
        zoo.NETWORKS["digits-cnn"](), dataclasses.replace(PAGE, name="digits-cnn", seed=7), folder
    )
    assert zoo.entry("digits-cnn").seed == 7
    assert zoo.names().count("digits-cnn") == 1


def test_a_net_that_is_not_here_says_how_to_have_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(zoo.NETWORKS, "digits-untrained", zoo.NETWORKS["digits-cnn"])
    with pytest.raises(ZooError, match=r"retroact train digits-untrained.*RETROACT_ZOO") as caught:
        zoo.load("digits-untrained")
    assert str(folder) in str(caught.value)
    with pytest.raises(ZooError, match="did you mean lenet-mnist"):
        zoo.load("lenet-mnst")


@pytest.mark.parametrize("damage", ["truncated", "changed", "foreign"])
def test_damaged_weights_are_refused(folder: Path, damage: str) -> None:
    zoo.write(zoo.NETWORKS["digits-cnn"](), PAGE, folder)
    path = folder / "mine.safetensors"
    raw = path.read_bytes()
    changed = {
        "truncated": raw[:1000],
        "changed": raw[:-1] + bytes([raw[-1] ^ 1]),
        "foreign": b"PK\x03\x04",
    }
    path.write_bytes(changed[damage])
    with pytest.raises(ZooError, match="SHA-256 differs"):
        zoo.load("mine")


def test_weights_of_another_net_are_refused(folder: Path) -> None:
    net = zoo.NETWORKS["mnist-cnn"]()
    zoo.write(net, PAGE, folder)
    with pytest.raises(ZooError, match="does not fit"):
        zoo.load("mine")


@pytest.mark.parametrize("page", ["", "[]", '{"name": "mine"}', "{"])
def test_a_page_that_is_none_is_refused(folder: Path, page: str) -> None:
    zoo.write(zoo.NETWORKS["digits-cnn"](), PAGE, folder)
    (folder / "mine.json").write_text(page)
    with pytest.raises(ZooError, match="no page of a net"):
        zoo.load("mine")


def test_a_page_with_an_unknown_network_is_refused(folder: Path) -> None:
    net = zoo.NETWORKS["digits-cnn"]()
    for network in ("Netwrk(1)", "DigitsCNN()", "__import__('os')"):
        zoo.write(net, dataclasses.replace(PAGE, network=network), folder)
        with pytest.raises(ZooError, match="page"):
            zoo.load("mine")


# --------------------------------------------------------------------------------------- your own


@pytest.fixture
def mynets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_own_nets.py").write_text(
        "from torch import nn\n"
        "from retroact.nets.classifier import Classifier\n"
        "def small(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "def ready(): return Classifier(small(), 0.5, 0.25, shape=(1, 8, 8))\n"
        "def nothing(): return None\n"
        "def broken(size): return small()\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _small() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


X = torch.rand(3, 1, 8, 8)


@pytest.mark.parametrize("form", ["safetensors", "pt", "wrapped"])
def test_a_users_net_is_built_filled_and_wrapped(mynets: Path, form: str) -> None:
    trained = _small()
    path = mynets / ("net.safetensors" if form == "safetensors" else "net.pt")
    if form == "safetensors":
        safetensors.torch.save_file(trained.state_dict(), path)
    else:
        state = trained.state_dict()
        torch.save({"state_dict": state, "epoch": 3} if form == "wrapped" else state, path)
    net = zoo.from_user("my_own_nets:small", path, mean=0.5, std=0.25)
    assert torch.equal(net(X), trained((X - 0.5) / 0.25))
    assert net.name == "my_own_nets:small"


def test_a_users_classifier_keeps_its_own_normalisation(mynets: Path) -> None:
    net = zoo.from_user("my_own_nets:ready")
    assert isinstance(net, Classifier)
    assert (net.mean.item(), net.std.item(), net.shape) == (0.5, 0.25, (1, 8, 8))


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_wants_to_run_code_is_refused(mynets: Path) -> None:
    mark = mynets / "it-ran"
    torch.save({"0.weight": _Bomb(mark)}, mynets / "bomb.pt")
    (mynets / "bomb.pkl").write_bytes(pickle.dumps(_Bomb(mark), protocol=2))
    torch.save(DigitsCNN()(), mynets / "whole-module.pt")
    for name in ("bomb.pt", "bomb.pkl", "whole-module.pt"):
        with pytest.raises(ZooError, match="was refused"):
            zoo.from_user("my_own_nets:small", mynets / name)
    assert not mark.exists()


def test_weights_that_do_not_fit_say_where(mynets: Path) -> None:
    safetensors.torch.save_file(nn.Linear(3, 2).state_dict(), mynets / "other.safetensors")
    with pytest.raises(ZooError, match=r"missing 1\.bias.*unknown weight"):
        zoo.from_user("my_own_nets:small", mynets / "other.safetensors")
    safetensors.torch.save_file(
        {"1.weight": torch.zeros(10, 3), "1.bias": torch.zeros(10)}, mynets / "s.safetensors"
    )
    with pytest.raises(ZooError, match=r"1\.weight is \(10, 3\), expected \(10, 64\)"):
        zoo.from_user("my_own_nets:small", mynets / "s.safetensors")


def test_weights_that_are_none_say_so(mynets: Path) -> None:
    (mynets / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    (mynets / "cut.pt").write_bytes(b"PK\x03\x04 and then nothing")
    torch.save([1, 2, 3], mynets / "list.pt")
    for name, message in (
        ("cut.safetensors", "truncated or no safetensors"),
        ("cut.pt", "was refused"),
        ("list.pt", "expected a state dict"),
        ("none.pt", "no such file"),
    ):
        with pytest.raises(ZooError, match=message):
            zoo.from_user("my_own_nets:small", mynets / name)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("my_own_nets", "package.module:function"),
        ("my_own_nets:small()", "package.module:function"),
        ("no_such_module:build", "No module named .*; stand in its folder"),
        ("my_own_nets.py:small", "write my_own_nets:small"),
        ("my_own_nets:missing", "my_own_nets has no function 'missing'"),
        ("my_own_nets:smal", "did you mean my_own_nets:small"),
        ("my_own_nets:broken", "TypeError"),
        ("my_own_nets:nothing", "gave NoneType"),
    ],
)
def test_a_users_net_that_cannot_be_built_says_why(mynets: Path, where: str, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        zoo.from_user(where)


def test_the_repositorys_zoo_is_found_beside_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETROACT_ZOO", raising=False)
    package, repository = zoo.folders()
    assert package == WEIGHTS.resolve()
    assert repository == WEIGHTS.resolve().parents[2] / "zoo"
