"""The docs say what the code does: the reference is up to date, the README's Python runs, paths stay out."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from retroact.nets import zoo

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_reference_is_up_to_date():
    code = "import runpy; print(runpy.run_path('docs/make_reference.py')['page'](), end='')"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert made == (ROOT / "docs" / "reference.md").read_text(), "run `make docs`"


@pytest.mark.skipif(not os.environ.get("RETROACT_DATA"), reason="the README's example needs MNIST in RETROACT_DATA")
def test_the_readmes_python_runs(tmp_path):
    text = (ROOT / "README.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "ra.tune" in block)
    code = code.replace("[:500]", "[:20]").replace("[:1000]", "[:20]")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_guide_to_ones_own_network_runs(tmp_path):
    """Each named block is written, each command run in turn, in one folder; verdicts come out of all of them."""
    told = []
    for language, block in re.findall(r"```(\w*)\n(.*?)```", (ROOT / "docs" / "your-network.md").read_text(), re.S):
        if language == "python":
            (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
            continue
        for command in block.strip().splitlines():
            program, rest = command.split(" ", 1)
            words = {"python": [], "retroact": ["-m", "retroact.cli"]}[program] + shlex.split(rest)
            done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            told.append((command, done.stdout))
    verdicts = [out for command, out in told if "audit" in command or "verdict" in command or "hf" in command]
    assert len(verdicts) == 5 and all(re.search("GENUINE|HARMFUL|NO EFFECT|INCONCL|ABSTAINED", v) for v in verdicts)
    assert (tmp_path / "verdict.html").stat().st_size > 10_000


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("name", zoo.names())
def test_the_zoos_table_says_what_each_page_says(name):
    page = zoo.entry(name)
    row = next(line for line in (ROOT / "docs" / "zoo.md").read_text().splitlines() if line.startswith(f"| `{name}` |"))
    told = (
        f"{100 * page.accuracy:.2f}% of {page.test_n}",
        f"{100 * page.validation_accuracy:.2f}% of {page.validation_n}",
    )
    assert all(said in row for said in (*told, f"`{page.recipe}`"))
