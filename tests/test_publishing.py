"""What is published: one version, workflows that run what there is, networks that fit the wheel."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import retroact
from retroact.nets import zoo

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_one_version_stands_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["project"]["version"] == cited["version"] == retroact.__version__


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_runs_what_there_is_and_may_write_only_where_it_publishes(file):
    read = yaml.safe_load(file.read_text())
    assert read["permissions"] == {"contents": "read"}
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    for name, job in read["jobs"].items():
        assert ("permissions" in job) == (name == "publish")
        ran = "\n".join(step.get("run", "") for step in job["steps"])
        assert set(re.findall(r"\bmake (\w+)", ran)) <= set(targets)
        assert ".ci/run" not in ran or (ROOT / ".ci" / "run").is_file()


def test_workflows_check_every_python_that_the_package_names():
    named = set(re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"])))
    checked = [
        set(job["strategy"]["matrix"]["python"])
        for file in WORKFLOWS
        for job in yaml.safe_load(file.read_text())["jobs"].values()
        if "strategy" in job
    ]
    assert checked == [named, named]


def test_every_network_that_fits_travels_in_the_wheel():
    package = ROOT / "retroact" / "nets" / "weights"
    left = list((ROOT / "zoo").glob("*.safetensors"))
    assert all(path.stat().st_size > zoo.PACKAGE_LIMIT for path in left)
    assert {"resnet20-cifar10", "resnet20-cifar10-robust"} <= {p.stem for p in package.iterdir()}
    assert sum(path.stat().st_size for path in package.iterdir()) < 3_000_000
