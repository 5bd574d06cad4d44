"""The notebooks run from the first cell to the last, and what they tell their reader is true."""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
TOLD = "told by the test: "

needs_mnist = pytest.mark.skipif(
    not os.environ.get("RETROACT_DATA"), reason="two of the networks need MNIST in RETROACT_DATA"
)


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module")
def kernel():
    """One kernel for all of them, as most of its start is the import of torch."""
    manager, client = start_new_kernel(kernel_name="python3")
    client.stop_channels()
    yield manager
    manager.shutdown_kernel(now=True)


def run(kernel, name, folder, **expressions):
    """The notebook as it ran, and what the expressions are worth in it, which must be JSON. It
    finds no name that another notebook has left."""
    notebook = read(name)
    asked = ", ".join(f"{name!r}: {expression}" for name, expression in expressions.items())
    ask = f"import json; print({TOLD!r} + json.dumps({{{asked}}}))"
    notebook.cells.append(nbformat.v4.new_code_cell(ask))
    begin = f"%reset -f\n%cd -q {folder}"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(begin))
    NotebookClient(notebook, km=kernel, iopub_timeout=60).execute()
    del notebook.cells[0]
    printed = notebook.cells.pop()["outputs"][-1]["text"]
    return notebook, json.loads(printed.removeprefix(TOLD))


def shown(notebook, kind):
    """What the cells displayed of a kind, in order."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    return [out["data"][kind] for out in outputs if kind in out.get("data", {})]


def test_there_are_four_and_the_index_names_each():
    page = (FOLDER.parent / "notebooks.md").read_text()
    assert len(NAMES) == 4
    assert set(re.findall(r"\(notebooks/(\w+)\.ipynb\)", page)) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_and_carries_nothing_of_a_machine(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert max(map(len, cell.source.splitlines())) <= 100
    text = "\n".join(cell.source for cell in notebook.cells)
    assert not re.search(r"/(home|root|work|Users|tmp)/", text)
    for target in re.findall(r"\]\((\w+\.ipynb)\)", text):
        assert (FOLDER / target).exists()
    for page in re.findall(r"`((?:docs|retroact)/[\w/.-]+)`", text):
        assert (FOLDER.parents[1] / page).exists(), page


@pytest.mark.slow
def test_the_first_audit_finds_the_mask(kernel, tmp_path):
    notebook, told = run(
        kernel,
        "first_audit",
        tmp_path,
        claimed="ra.robust_accuracy(claimed)",
        seeing="ra.robust_accuracy(seeing)",
        blind="claimed.blind",
        words="audit.verdict.words",
        mechanism="audit.verdict.mechanism",
        effect="audit.verdict.effect",
        fell="len(blind)",
        by="blind.broken_by_after.notna().all().item()",
    )
    assert told["claimed"] - told["seeing"] > 0.2 and told["blind"] > 0.5
    assert "MASKED" in told["words"] and "saturation" in told["mechanism"]
    assert told["effect"] != "GENUINE" and told["fell"] > 10 and told["by"]
    assert len(shown(notebook, "image/png")) == 2
    assert "gradients were exactly zero" in shown(notebook, "text/html")[1]


@pytest.mark.slow
def test_ones_own_network_is_changed_kept_and_audited(kernel, tmp_path):
    notebook, told = run(
        kernel,
        "your_own_network",
        tmp_path,
        clean="ra.clean_accuracy(mine)",
        complaint="complaint",
        sites="[site.kind for site in ra.sites(net)]",
        same="torch.equal(again(images), first(images))",
        gain="verdict.counts.verified_gain",
        interval="verdict.counts.interval",
        effect="verdict.effect",
    )
    assert told["clean"] > 0.9 and "expected pixels in [0,1]" in told["complaint"]
    assert told["sites"] == ["relu", "relu"] and told["same"]
    assert told["interval"][0] <= told["gain"] <= told["interval"][1]
    assert told["effect"] != "GENUINE" and len(shown(notebook, "image/png")) == 1
    assert (tmp_path / "mine.safetensors").exists()


@pytest.mark.slow
@needs_mnist
def test_two_papers_claim_what_an_audit_does_not_find(kernel, tmp_path):
    notebook, told = run(
        kernel,
        "two_papers_in_ten_minutes",
        tmp_path,
        tuned="[(p.claimed, p.verified) for p in tuned.points]",
        usual="ra.robust_accuracy(usual)",
        worst="float(worst.mean())",
        jumped="(jumped.verdict.effect, jumped.verdict.mechanism)",
        sloped="(sloped.verdict.effect, sloped.verdict.mechanism)",
        steep="max(r.blind for r in records)",
        cells="len(records)",
    )
    (claimed, verified), last = told["tuned"][0], told["tuned"][-1]
    assert last[0] > claimed and last[1] < verified  # the curves part
    assert told["worst"] < told["usual"] - 0.2
    assert told["jumped"][0] == "HARMFUL" and "jump" in told["jumped"][1]
    assert told["sloped"][0] != "GENUINE" and "saturation" in told["sloped"][1]
    assert told["cells"] == 8 and told["steep"] > 0.5
    assert len(shown(notebook, "image/png")) == 5


@pytest.mark.slow
def test_an_attack_and_an_activation_of_ones_own_are_audited(kernel, tmp_path):
    notebook, told = run(
        kernel,
        "your_own_attack_and_activation",
        tmp_path,
        plain="ra.robust_accuracy(plain)",
        climbed="ra.robust_accuracy(climbed)",
        clean="ra.clean_accuracy(climbed)",
        blind="climbed.blind",
        borrowed="ra.robust_accuracy(borrowed)",
        claimed="audit.verdict.counts.claimed",
        verified="audit.verdict.counts.verified",
        words="audit.verdict.words",
        effect="audit.verdict.effect",
    )
    assert told["climbed"] == told["clean"] and told["blind"] == 1
    assert told["borrowed"] < told["climbed"] - 0.1 and told["plain"] < 0.9
    assert told["claimed"][1] == told["climbed"]
    assert told["verified"][1] < told["claimed"][1] and "MASKED" in told["words"]
    assert told["effect"] != "GENUINE" and len(shown(notebook, "image/png")) == 2
