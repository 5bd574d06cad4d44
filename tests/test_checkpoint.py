"""Saved networks load back equal, with their retrofit; nothing is unpickled and nothing named is
imported."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import JumpReLU, ReLU, SReLU
from retroact.activations.shifted import write_shifts
from retroact.auditing.audit import audit
from retroact.auditing.battery import Battery
from retroact.checkpoint import CheckpointError, code_of, digest, load, save
from retroact.crafting.threat import Linf
from retroact.nets import zoo
from retroact.nets.classifier import Classifier
from retroact.nets.data import data
from retroact.retrofitting.installed import installed
from retroact.retrofitting.sites import sites
from retroact.retrofitting.surgery import retrofit
from retroact.training.hardening import Hardening, harden


@pytest.fixture(scope="module")
def net():
    return load("digits-cnn")


@pytest.fixture(scope="module")
def images():
    return data("digits[:50]").images


@pytest.mark.parametrize(
    "activation", [None, JumpReLU(0.7), SReLU(10.0), "per site", "shifts"], ids=str
)
def test_a_saved_network_loads_back_equal(net, images, tmp_path, activation):
    if activation == "per site":
        count = len(sites(net))
        activation = PerSite((JumpReLU(0.3), *[ReLU()] * (count - 1)))
    if activation == "shifts":
        torch.manual_seed(0)
        channels = {
            s.name: net.get_submodule(f"module.{s.name.replace('_relu', '')}").weight.shape[0]
            for s in sites(net)
        }
        activation = write_shifts(
            tmp_path / "b.safetensors", {k: 0.3 * torch.randn(c) for k, c in channels.items()}
        )
    hard = net if activation is None else retrofit(net, activation)
    again = load(save(hard, tmp_path / "hard.safetensors"))
    (tmp_path / "b.safetensors").unlink(missing_ok=True)
    again = load(tmp_path / "hard.safetensors")  # the shifts travelled inside
    assert torch.equal(again(images), hard(images))
    assert getattr(again, "retrofit", None) == getattr(hard, "retrofit", None)
    assert again.name == "digits-cnn" and again.shape == net.shape
    assert digest(again) == digest(hard)
    assert (digest(again) == digest(net)) == (activation is None)


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))

    def forward(self, x):
        return {"logits": self.inner(x)}


def test_a_network_of_ones_own_needs_an_instance(images, tmp_path):
    hard = retrofit(
        Classifier(Mine(), 0.5, 0.25, shape=(1, 8, 8), output="logits", name="mine"), JumpReLU(0.1)
    )
    path = save(hard, tmp_path / "mine.safetensors")
    with pytest.raises(CheckpointError, match="whose code it cannot name.*into="):
        load(path)
    assert torch.equal(load(path, into=Mine())(images), hard(images))
    with pytest.raises(CheckpointError, match="does not fit"):
        load(path, into=nn.Linear(3, 3))


MINE = """
from torch import nn
import retroact as ra
def small(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
def plain(): return ra.Classifier(small(), 0.5, 0.25, shape=(1, 8, 8))
def ready(): return ra.Classifier(small(), 0.5, 0.25, shape=(1, 8, 8), output=lambda o: 2 * o)
"""


@pytest.fixture
def my_file(tmp_path, monkeypatch):
    (tmp_path / "of_my_own.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("of_my_own", None)


@pytest.mark.parametrize("where", ["of_my_own:plain", "of_my_own:ready"])
def test_a_file_names_the_code_of_a_network_and_runs_none(my_file, images, where):
    hard = retrofit(load(where), JumpReLU(0.1))
    path = save(hard, my_file / "mine.safetensors")
    assert code_of(path) == where
    # normalisation, output and retrofit with it
    assert torch.equal(load(where, weights=path)(images), hard(images))
    assert not torch.equal(load(where, weights=path)(images), load(where)(images))
    again = load(where, weights=save(load(where, weights=path), my_file / "again.safetensors"))
    assert digest(again) == digest(hard)
    del sys.modules["of_my_own"]
    with pytest.raises(
        CheckpointError, match=r"nothing that a file names is imported.*load\('of_my_own:.*weights="
    ):
        load(path)
    assert "of_my_own" not in sys.modules


def test_what_a_file_names_is_found_only_where_its_function_is_written_here(my_file):
    (my_file / "package").mkdir()
    (my_file / "package" / "__init__.py").write_text(
        "from of_my_own import small\nfrom os import abort\n"
    )
    (my_file / "package" / "nets.py").write_text("class Net: ...\nhidden = 1\n")
    (my_file / "json.py").write_text("def build(): ...\n")  # the standard library's comes before it
    assert zoo.written_here("of_my_own:small") == my_file / "of_my_own.py"
    assert zoo.written_here("package.nets:Net") == my_file / "package" / "nets.py"
    for elsewhere in (
        "package:small",
        "package:abort",
        "package.nets:hidden",
        "package.none:build",
        "json:build",
        "os:abort",
        "torch.nn:Identity",
        "no_such_module:build",
        "..of_my_own:small",
    ):
        assert zoo.written_here(elsewhere) is None
    assert not {"of_my_own", "package"} & sys.modules.keys()


def test_what_cannot_be_saved_whole_is_refused_and_nothing_is_written(net, tmp_path):
    with pytest.raises(ValueError, match="expected a Classifier, got Linear"):
        save(nn.Linear(2, 2), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a function cannot be saved"):
        save(Classifier(nn.Linear(2, 2), output=lambda o: o), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", ["float64", "meta", "inference", "no grad"])
def test_what_the_caller_has_set_has_no_part_in_a_net_that_is_saved_or_read(
    net, images, tmp_path, setting
):
    hard = retrofit(net, JumpReLU(0.3))
    ours = {
        "inference": torch.inference_mode,
        "no grad": torch.no_grad,
        "meta": lambda: torch.device("meta"),
    }
    before = torch.get_rng_state()
    try:
        torch.set_default_dtype(torch.float64 if setting == "float64" else torch.float32)
        with ours.get(setting, torch.enable_grad)():
            nets = load("digits-cnn"), load(save(hard, tmp_path / "hard.safetensors"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before, torch.get_rng_state())
    for again, like in zip(nets, (net, hard), strict=True):
        assert digest(again) == digest(like) and torch.equal(again(images), like(images))
        again(images).sum().backward()
        assert all(p.grad is not None for p in again.parameters())


@pytest.mark.parametrize(
    "setting", [torch.inference_mode, lambda: torch.device("meta")], ids=["inference", "meta"]
)
def test_an_instance_that_cannot_be_filled_takes_the_tensors_of_the_file(tmp_path, setting):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
            self.b.weight = self.a.weight
            self.register_buffer("scale", torch.arange(4.0), persistent=False)

        def forward(self, x):
            return self.norm(self.b(self.a(x.flatten(1)).relu())) * self.scale

    x, path = torch.rand(3, 1, 2, 2), tmp_path / "tied.safetensors"
    net = Classifier(Tied(), shape=(1, 2, 2))
    save(net, path)
    with setting():
        blank = Tied()
    filled = load(path, into=blank)
    assert torch.equal(filled(x), net(x)) and filled.module.a.weight is filled.module.b.weight
    filled(x).sum().backward()
    assert filled.module.a.weight.grad is not None


def test_damaged_and_foreign_files_are_refused_with_the_cure(net, tmp_path):
    path = save(net, tmp_path / "net.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or no safetensors file"):
        load(path)
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="does not say of which network"):
        load(tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="no file"):
        load(tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError, match="holds its own weights"):
        load(path, weights=path)
    with pytest.raises(ValueError, match="did you mean digits-cnn"):
        load("digit-cnn")


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran')",))


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="unpickling one could run its code"):
        load(path)
    torch.save({"state": Bomb()}, path)
    with pytest.raises(ValueError, match="refused"):
        load("torch.nn:Identity", weights=path)


def test_metadata_runs_nothing(net, tmp_path):
    path = save(net, tmp_path / "net.safetensors")
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["retroact"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    for wish in (
        "__import__('os').abort()",
        "subprocess",
        "Network(__import__('os'))",
        "Model('os:abort')",
        "Network(Model('os:abort'), 'digits', (1, 8, 8))",
        "Network(DataSlice('folder:here'), 'digits', (1, 8, 8))",
    ):
        evil = {"retroact": json.dumps(said | {"network": wish})}
        save_file(tensors, tmp_path / "evil.safetensors", metadata=evil)
        with pytest.raises(CheckpointError, match="does not fit the network it names"):
            load(tmp_path / "evil.safetensors")
    save_file(
        tensors,
        tmp_path / "evil.safetensors",
        metadata={"retroact": json.dumps(said | {"retrofit": "Model('os:abort')"})},
    )
    with pytest.raises(CheckpointError, match="should name a Retrofit"):
        load(tmp_path / "evil.safetensors")
    newer = {"retroact": json.dumps(said | {"format": "99"})}
    save_file(tensors, tmp_path / "newer.safetensors", metadata=newer)
    with pytest.raises(CheckpointError, match="format 99.*upgrade"):
        load(tmp_path / "newer.safetensors")


def test_a_hardened_network_is_the_same_bit_for_bit_where_nothing_but_its_file_is_known(
    net, images, tmp_path
):
    recipe = Hardening(steps=4, batch=50)
    made = harden(net, data("digits/train[:200]"), Linf(0.1), recipe).net
    path = save(made, tmp_path / "hard.safetensors")
    changed = [
        k
        for k, v in net.module.state_dict().items()
        if not torch.equal(v, made.module.state_dict()[k])
    ]
    # the logits' own; the shifts lie in the retrofit
    assert len(changed) == 1 and changed[0].endswith("bias")
    assert all(bool(site.activation.shift.abs().max() > 0) for site in installed(made).values())
    code = (  # another process, which has never seen these shifts
        "import sys, torch; import retroact as ra\n"
        "net, x = ra.load(sys.argv[1]), ra.data('digits[:50]').images\n"
        "with torch.no_grad(): torch.save(net(x), sys.argv[2])"
    )
    there = tmp_path / "logits.pt"
    subprocess.run([sys.executable, "-c", code, str(path), str(there)], check=True)
    with torch.no_grad():
        assert torch.equal(torch.load(there, weights_only=True), made(images))
        assert not torch.equal(net(images), made(images))


def card(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["retroact"]).get("model-index")


def test_a_saved_network_carries_what_was_measured_of_it_and_of_nothing_else(net, tmp_path):
    """As a model card says it: huggingface_hub reads the numbers back."""
    little = Battery(1, 1, 1, 1, trial_steps=0, sample=4, queries=0, points=20)
    train, held = "digits/train[:100]", "digits/validation[:60]"
    made = harden(net, train, Linf(0.1), Hardening(steps=1, batch=20), held=held)
    audited = audit(net, made.net, "digits[:40]", Linf(0.1), battery=little)
    name, results = model_index_to_eval_results(
        card(save(made.net, tmp_path / "hard.safetensors", audit=audited))
    )
    told = {(r.metric_name, r.dataset_name): r.metric_value for r in results}
    counts, numbers = audited.verdict.counts, list(told.values())
    assert name == "digits-cnn" and {r.task_type for r in results} == {"image-classification"}
    assert told["clean accuracy before hardening", held] == made.curve[0].clean
    assert told["clean accuracy", held] == made.curve[-1].clean
    assert told["clean accuracy", "digits[:40]"] == counts.clean[1]
    assert numbers[-1] == counts.verified[1] and counts.verified[0] in numbers
    assert card(save(net, tmp_path / "net.safetensors")) is None
    assert (
        len(
            model_index_to_eval_results(
                card(save(net, tmp_path / "net.safetensors", audit=audited))
            )[1]
        )
        == 3
    )
    with pytest.raises(ValueError, match="expected an audit of the network that is saved"):
        save(retrofit(net, JumpReLU(0.7)), tmp_path / "jump.safetensors", audit=audited)
    with torch.no_grad():
        next(made.net.parameters()).add_(0.1)  # another network from here on
    assert card(save(made.net, tmp_path / "moved.safetensors")) is None
