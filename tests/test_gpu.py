"""The stages of bench/gpu.sh at toy size on the CPU, where none of what a bare machine lacks can be
imported."""

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import retroact as ra
from retroact.nets import zoo
from retroact.training.recipes import Adversarial, MixedFGSM

ROOT = Path(__file__).parents[1]
LIMIT = 16 * 2**20
MISSING = (
    "datasets",
    "pandas",
    "pyarrow",
    "typer",
    "rich",
    "matplotlib",
    "sklearn",
    "jinja2",
    "pytest",
    "hypothesis",
)
TRAININGS = (
    "wideresnet-cifar10",
    "wideresnet-cifar10-robust",
    "mobilenetv2-cifar10",
    "mobilenetv2-cifar10-robust",
    "preactresnet18-cifar10-robust",
)

_BARE = f"""
from importlib.machinery import PathFinder

found = PathFinder.find_spec

@staticmethod
def here(name, *where):
    return None if name.partition(".")[0] in {MISSING!r} else found(name, *where)

PathFinder.find_spec = here
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a machine that has torch, numpy, safetensors and Pillow alone."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(_BARE)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RETROACT")}
    return kept | {"PYTHONPATH": str(folder), "PYTHON": sys.executable}


def run(stage: str, out: Path, env: dict[str, str], *words: str) -> str:
    command = ["bash", "bench/gpu.sh", stage, "--toy", "--before", str(out), *words]
    done = subprocess.run(
        command, cwd=ROOT, env=env | {"OUT": str(out)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(path.stat().st_size <= LIMIT for path in out.iterdir())
    return done.stdout


# each architecture and each kind of recipe by default; `tests-and-bench` takes a step of all
OFTEN = ("wideresnet-cifar10", "mobilenetv2-cifar10-robust", "preactresnet18-cifar10-robust")
STAGES: tuple[tuple[str, ...], ...] = (
    ("tests-and-bench",),
    ("attacks-and-audit",),
    *((name,) for name in OFTEN),
    ("mobilenetv2-cifar10", "--minutes", "0"),
)

_EACH = """
import contextlib, io, json, os, sys, traceback
sys.path.insert(0, "bench")
import gpu
from retroact.auditing import battery
from retroact.crafting import student

# the stages are tested here, the battery and what it teaches elsewhere
student._STEPS = 2
spent = {"steps": 2, "targets": 2, "targeted_steps": 2, "finish": 2, "alarmed_finish": 2}
battery._NAMED["quick"] = battery.Battery(**spent, trial_steps=0, queries=0, points=20)
told = {}
for stage, *words in json.loads(sys.argv[1]):
    os.environ.pop("RETROACT_ZOO", None)
    folder = os.path.join(sys.argv[2], stage)
    kept, sys.argv = sys.argv, ["gpu.py", stage, "--toy", "--out", folder, "--before", folder]
    sys.argv += words
    said, code = io.StringIO(), None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            gpu.main()
        except SystemExit as ended:
            code = ended.code
        except Exception:
            traceback.print_exc()
    sys.argv, told[stage] = kept, (code, said.getvalue())
print(json.dumps(told))
"""


@dataclass(frozen=True)
class Ran:
    """Stages that ran: what each said and how it ended, and the folder of its outputs."""

    told: dict[str, tuple[int | None, str]]
    folder: Path

    def of(self, stage: str) -> tuple[Path, str]:
        code, said = self.told[stage]
        assert code == 0, said
        out = self.folder / stage
        assert all(path.stat().st_size <= LIMIT for path in out.iterdir())
        return out, said


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, bare: dict[str, str]) -> Ran:
    """The stages, one after the other in one process, as most of a toy's time is its imports."""
    folder = tmp_path_factory.mktemp("ran")
    env = bare | {"PYTHONPATH": f"{bare['PYTHONPATH']}{os.pathsep}{ROOT}"}
    words = [sys.executable, "-c", _EACH, json.dumps(STAGES), str(folder)]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return Ran(json.loads(done.stdout.splitlines()[-1]), folder)


def test_the_machine_of_these_tests_is_bare(bare: dict[str, str]) -> None:
    for name in MISSING:
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], env=bare, capture_output=True, text=True
        )
        assert f"No module named {name!r}" in done.stderr


@pytest.mark.slow
def test_the_checks_pass_and_the_bench_is_written(ran: Ran) -> None:
    out, _ = ran.of("tests-and-bench")
    checks = json.loads((out / "checks.json").read_text())["checks"]
    assert len(checks) > 20
    assert all(one["passed"] is True for one in checks.values()), checks
    bench = json.loads((out / "bench.json").read_text())
    assert bench["trainings"].keys() == set(TRAININGS)
    assert all(one["minutes_foretold"] > 0 for one in bench["trainings"].values())
    assert {one["dtype"] for one in bench["attacks"]} == {"torch.float32", "torch.bfloat16"}
    assert all(one["gradients"] == 2 and one["images_per_second"] > 0 for one in bench["attacks"])


@pytest.mark.slow
def test_attacks_are_timed_beside_the_peers_that_are_installed(ran: Ran) -> None:
    out, said = ran.of("attacks-and-audit")
    found = json.loads((out / "audit.json").read_text())
    assert found["audit"]["seconds"] > 0 and found["audit"]["n"] == 4
    assert "torchattacks" in found["absent"] or "torchattacks" in said
    assert not found["no time for"]
    rows = [json.loads(line) for line in (out / "attacks.jsonl").read_text().splitlines()]
    nets = ["lenet-mnist", "resnet20-cifar10", "wideresnet-cifar10"]
    assert [row["net"] for row in rows] == nets and {row["device"] for row in rows} == {"cpu"}
    for row in rows:
        # nobody is in the table who is said to be absent, and ours took time beside the bare pass
        assert not {"torchattacks", "foolbox"} & set(found["absent"]) & set(row["seconds"])
        assert row["limit"] > 0 and min(row["seconds"]["ours"]) > 0 and row["passes"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in OFTEN else [pytest.mark.long]) for n in TRAININGS],
)
def test_a_training_writes_a_network_that_loads(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in OFTEN:
        tmp_path, _ = request.getfixturevalue("ran").of(name)
    else:
        run(name, tmp_path, request.getfixturevalue("bare"))
    monkeypatch.setenv("RETROACT_ZOO", str(tmp_path))
    page, report = zoo.entry(name), json.loads((tmp_path / f"{name}.report.json").read_text())
    assert (page.epochs, page.dtype, page.test_n) == (2, "float16", 4)
    assert page.command == f"bash bench/gpu.sh {name}"
    recipe = ra.parse(page.recipe)
    assert isinstance(recipe, MixedFGSM | Adversarial) == name.endswith("robust")
    assert (recipe.standard.bf16, recipe.standard.channels_last, recipe.standard.sizes) == (
        True,
        True,
        (),
    )
    assert report["finished"] and [e["epoch"] for e in report["epochs"]] == [1, 2]
    assert 0 <= report["robust"]["accuracy"] <= 1 and report["robust"]["n"] == 4
    x = torch.rand(2, 3, 32, 32)
    assert zoo.load(name)(x).isfinite().all()


@pytest.mark.slow
def test_a_training_that_was_not_done_in_time_goes_on_in_the_next_call(
    ran: Ran, bare: dict[str, str]
) -> None:
    name = "mobilenetv2-cifar10"
    out, said = ran.of(name)
    assert "1 of 2 epochs are behind" in said
    assert sorted(p.name for p in out.iterdir()) == [
        f"{name}.checkpoint.safetensors",
        f"{name}.report.json",
    ]
    assert not json.loads((out / f"{name}.report.json").read_text())["finished"]
    run(name, out, bare, "--minutes", "0")  # as it is called on such a machine
    report = json.loads((out / f"{name}.report.json").read_text())
    assert (
        report["finished"] and report["went_on"] and [e["epoch"] for e in report["epochs"]] == [2]
    )
    assert not (out / f"{name}.checkpoint.safetensors").exists()


def test_the_pack_has_the_splits_of_the_data_room(tmp_path: Path) -> None:
    _parquet(tmp_path / "cifar10", {"train": 30, "test": 12})
    env = os.environ | {
        "RETROACT_DATA": str(tmp_path),
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    code = (
        "import sys; sys.path.insert(0, 'bench')\nimport gpu_pack, retroact as ra; from pathlib"
        " import Path\ngpu_pack.main()\nnames = 'cifar10/train', 'cifar10/validation',"
        " 'cifar10'\nfor part, text in zip(gpu_pack.unpacked(Path(sys.argv[-1])), names,"
        " strict=True):\n    room = ra.data(text)\n    assert part.fingerprint == room.fingerprint"
        " and part.index.equal(room.index), text\n    assert repr(part) == repr(room) and"
        " part.split == room.split and part.class_names == room.class_names\n"
    )
    words = [sys.executable, "-c", code, "--out", str(tmp_path / "pack.npz")]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "27 of 3x32x32, 10 classes, local parquet, train" in done.stdout


def _parquet(folder: Path, sizes: dict[str, int]) -> None:
    """Pictures as CIFAR-10's files hold them, PNG and JPEG by turns."""
    import datasets

    folder.mkdir()
    names = [f"class {i}" for i in range(10)]
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    random = np.random.RandomState(0)
    for split, n in sizes.items():
        cells = []
        for i in range(n):
            picture = io.BytesIO()
            pixels = random.randint(0, 256, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(picture, "JPEG" if i % 3 else "PNG")
            cells.append({"bytes": picture.getvalue(), "path": None})
        rows = datasets.Dataset.from_dict(
            {"img": cells, "label": [i % 10 for i in range(n)]}, features=features
        )
        rows.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
