"""An attack, an activation, a norm and an executor from outside the package, each one class in a
module of one's own, go the whole walk: in Python and on the command line."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import retroact as ra
from retroact.spec import known, parse

MINE = '''
"""Additions of one's own: a class each."""

import torch

import retroact as ra
from retroact.activations.ramp import FinitePositive
from retroact.crafting.driver import Unbroken
from retroact.crafting.losses import cross_entropy
from retroact.executors import Executor
from retroact.spec import Count, Positive, spec


@spec
class Creep(ra.Attack):
    """x + eps/steps along the steepest direction, again and again."""

    steps: Count = 4
    norms = ra.EVERY_NORM
    needs = "gradient"
    kind = "budget"
    paper = "nobody"

    @property
    def passes(self):
        return self.steps

    def __call__(self, scene):
        unbroken, x, centre = Unbroken(scene), scene.x, scene.x
        for _ in range(self.steps):
            aim = unbroken.aim
            logits, gradient = scene.oracle.gradient(
                x, unbroken.rows, lambda z, aim=aim: cross_entropy(z, aim)
            )
            x, centre, gradient = unbroken.drop(x, logits, centre, gradient)
            if not len(unbroken):
                break
            x = scene.step(x, gradient, scene.threat.eps / self.steps, centre)
        return unbroken.finish(x)


@spec
class Squaresum(ra.Activation):
    """(z + sqrt(z² + b)) / 2."""

    b: FinitePositive = 1.0

    def __call__(self, z):
        return (z + torch.sqrt(z * z + self.b)) / 2


@spec
class L4(ra.ThreatModel):
    """(Σ d⁴)^(1/4) ≤ eps."""

    eps: Positive
    access: str = "gradient"
    norm = "l4"

    @staticmethod
    def size(d):
        return d.flatten(1).norm(p=4, dim=1)

    @staticmethod
    def dual_norm(g):
        return g.flatten(1).norm(p=4 / 3, dim=1)

    @staticmethod
    def steepest(g):
        d = g.sign() * g.abs() ** (1 / 3)
        return d / L4.size(d).clamp_min(1e-12).view(-1, *[1] * (d.dim() - 1))

    @staticmethod
    def cut(d, radius):
        share = (radius / L4.size(d).clamp_min(1e-12)).clamp_max(1.0)
        return d * share.view(-1, *[1] * (d.dim() - 1))

    @staticmethod
    def measure(domain):
        return domain.width * domain.entries**0.25


@spec
class LastFirst(Executor):
    """The last task first."""

    def __call__(self, work, tasks, /):
        for task in reversed(list(tasks)):
            yield task, work(task)
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the module in it, imported here for the time of the tests."""
    folder = tmp_path_factory.mktemp("additions")
    (folder / "additions_of_mine.py").write_text(MINE, encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def mine(home):
    return importlib.import_module("additions_of_mine")


def call(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, which knows nothing of this one."""
    code = "from retroact.cli import main; main()"
    paths = os.pathsep.join([str(home), str(Path(ra.__file__).parents[1])])
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=home,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


def test_each_is_one_class_of_one_file(mine):
    classes = [n.name for n in ast.parse(MINE).body if isinstance(n, ast.ClassDef)]
    assert classes == ["Creep", "Squaresum", "L4", "LastFirst"]
    assert mine.Creep in known(ra.Attack) and mine.L4 in known(ra.ThreatModel)
    assert parse("Creep(steps=2)", ra.Attack) == mine.Creep(2)


def test_they_go_the_whole_walk_in_python(mine, tmp_path, brief):
    hard = ra.retrofit("digits-cnn", mine.Squaresum(0.5))
    ra.save(hard, tmp_path / "hard.safetensors")
    assert ra.load(tmp_path / "hard.safetensors").retrofit.activation == mine.Squaresum(0.5)
    record = ra.evaluate(hard, "digits[:40]", mine.Creep(), mine.L4(0.4))
    assert ra.robust_accuracy(record) < ra.clean_accuracy(record)
    made = ra.audit(
        "digits-cnn", hard, "digits[:40]", mine.L4(0.2), claimed=mine.Creep(), battery="quick",
        executor=mine.LastFirst(),
    )  # fmt: skip
    assert made.threat == "L4(eps=0.2)" and made.claimed_attack == "Creep(steps=4)"
    ra.report(made, tmp_path / "audit.html")
    assert "Squaresum" in (tmp_path / "audit.html").read_text()


def test_an_executor_of_ones_own_changes_no_bit(mine, tmp_path):
    attacks = [mine.Creep(), ra.FGSM()]
    cells = ra.grid(
        ["digits-cnn"], [None, mine.Squaresum()], attacks, [mine.L4(0.3)], "digits[:20]"
    )
    with ra.Store(tmp_path / "a.sqlite") as here, ra.Store(tmp_path / "b.sqlite") as there:
        records = ra.sweep(cells, here)
        assert ra.sweep(cells, there, executor=mine.LastFirst()) == records
    assert len(records) == 4


def test_they_work_on_the_command_line(home):
    own = ("--import", "additions_of_mine")
    attack = call(
        home, *own, "attack", "digits-cnn", "Creep(steps=3)", "--threat", "L4(0.3)",
        "--data", "digits[:30]", "--activation", "Squaresum(0.5)", "--json",
    )  # fmt: skip
    assert attack.returncode == 0, attack.stderr
    assert "Creep(steps=3)" in attack.stdout and json.loads(attack.stdout)
    audit = call(
        home, "audit", "digits-cnn", "Squaresum(0.5)", "--threat", "L4(0.2)", "--data",
        "digits[:40]", "--quick", "--executor", "LastFirst()", *own,
    )  # fmt: skip
    assert audit.returncode == 0, audit.stderr
    listed = call(home, *own, "list", "attacks")
    assert "Creep" in listed.stdout
    unknown = call(
        home, "attack", "digits-cnn", "Creep()", "--threat", "Linf(0.1)", "--data", "digits"
    )
    assert unknown.returncode == 2 and "Creep" in unknown.stderr
