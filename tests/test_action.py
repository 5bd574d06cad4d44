"""The GitHub action's script, run as the runner runs it, with a stand-in for `retroact`."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from retroact.cli.app import app

ACTION = yaml.safe_load((Path(__file__).parents[1] / "action.yml").read_text("utf-8"))
STEP = ACTION["runs"]["steps"][1]
FAKE = '#!/bin/bash\nprintf "%s\\n" "$@" > said\necho "the report" > out/audit.md\nexit $CODE\n'


@pytest.fixture
def run(tmp_path):
    """Runs the step with these inputs; returns (exit code, the words, the summary)."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "retroact").write_text(FAKE)
    (tmp_path / "bin" / "retroact").chmod(0o755)

    def run(code=0, **inputs):
        given = {name: str(what.get("default", "")) for name, what in ACTION["inputs"].items()}
        given |= inputs | {"reports": "out"}
        said = {
            variable: given[text.removeprefix("${{ inputs.").removesuffix(" }}")]
            for variable, text in STEP["env"].items()
        }
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | said | {"PATH": path, "CODE": str(code)}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEP["run"]],
            cwd=tmp_path,
            env=env | {"GITHUB_STEP_SUMMARY": "summary.md"},
        )
        words = (tmp_path / "said").read_text().splitlines()
        return done.returncode, words, (tmp_path / "summary.md").read_text()

    return run


ASKED = {"before": "mine:build", "data": "npz:test.npz", "threat": "Linf(8/255)"}


@pytest.mark.parametrize("code", [0, 1, 3, 4])
def test_the_step_ends_as_the_audit_does_and_shows_its_report(run, code):
    found, words, summary = run(code, change="JumpReLU(1.0)", **ASKED)
    assert found == code and summary == "the report\n"
    assert words[:3] == ["audit", "--require", "not-weaker"]
    assert words[-3:] == ["--", "mine:build", "JumpReLU(1.0)"]


def test_what_is_left_out_is_not_said_and_nothing_is_run_that_an_input_holds(run, tmp_path):
    odd = "$(touch broken); a 'b' \"c\""
    _, words, _ = run(**ASKED | {"against": odd, "budget": "5m"})
    assert words[words.index("--against") + 1] == odd and words[-2:] == ["--", "mine:build"]
    assert words[words.index("--budget") + 1] == "5m" and "--baseline" not in words
    assert not (tmp_path / "broken").exists()


def test_the_step_knows_the_options_of_the_command():
    (audit,) = (c for c in app.registered_commands if c.name == "audit")
    options = {*re.findall(r"(?<![\w-])--[a-z][a-z-]*", STEP["run"]), "--html", "--md"}
    known = {f"--{name.replace('_', '-')}" for name in audit.callback.__annotations__}
    assert options <= known
    assert "${{" not in STEP["run"]  # inputs are never text of the script
