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


_EACH = """
import contextlib, io, json, sys
from retroact.auditing import battery
from retroact.cli import main

spent = {"steps": 4, "targets": 2, "targeted_steps": 4, "finish": 4, "alarmed_finish": 4}
battery._NAMED["quick"] = battery.Battery(**spent, trial_steps=0, queries=0, points=20)
told = []
for words in json.loads(sys.argv[1]):
    sys.argv, out, err = ["retroact", *words], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code
    told.append((code or 0, out.getvalue(), err.getvalue()))
print(json.dumps(told))
"""


def call(home: Path, *commands: tuple[str, ...]) -> list[tuple[int, str, str]]:
    """Code, output and errors of each command line, in a process of their own, which knows nothing
    of this one; it takes every step of `--quick` at next to no cost."""
    paths = os.pathsep.join([str(home), str(Path(ra.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", _EACH, json.dumps(commands)],
        cwd=home,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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
        "digits-cnn", hard, "digits[:20]", mine.L4(0.2), claimed=mine.Creep(), battery="quick",
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
    of = ("digits-cnn", "--threat", "L4(0.3)", "--data", "digits[:12]")
    few = ("--claimed", "Creep(steps=2)")
    attack, audit, listed = call(
        home,
        (*own, "attack", *of, "Creep(steps=3)", "--activation", "Squaresum(0.5)", "--json"),
        ("audit", *of, "Squaresum(0.5)", "--quick", "--executor", "LastFirst()", *own, *few),
        (*own, "list", "attacks"),
    )
    assert attack[0] == 0, attack[2]
    assert "Creep(steps=3)" in attack[1] and json.loads(attack[1])
    assert audit[0] == 0, audit[2]
    assert "Creep" in listed[1]
    linf = ("--threat", "Linf(0.1)", "--data", "digits")
    (unknown,) = call(home, ("attack", "digits-cnn", "Creep()", *linf))
    assert unknown[0] == 2 and "Creep" in unknown[2]
