"""What a shell completes: commands and options, and the names that are known without torch."""

import os
import subprocess
import sys

import pytest


@pytest.fixture
def complete(call, monkeypatch, tmp_path):
    """What bash is told of words whose last is not whole yet."""
    monkeypatch.setenv("_RETROACT_COMPLETE", "complete_bash")
    # the program is called `retroact`, and not `python -m pytest`
    monkeypatch.setattr(sys.modules["__main__"], "__package__", "", raising=False)

    def completed(words: str) -> tuple[int, list[str], str]:
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
        code, out, err = call()
        return code, out.split(), err

    return completed


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("retroact au", ["audit"]),
        ("retroact audit digits-cnn --thr", ["--threat"]),
        ("retroact audit digits-c", ["digits-cnn"]),
        ("retroact audit digits-cnn JumpR", ["JumpReLU"]),
        ("retroact audit digits-cnn --threat Li", ["Linf"]),
        ("retroact audit digits-cnn --data dig", ["digits"]),
        ("retroact attack digits-cnn DeepFo", ["DeepFool"]),
        ("retroact sweep --net digits-c", ["digits-cnn"]),
        ("retroact list act", ["activations"]),
        ("retroact study sre", ["srelu"]),
        ("retroact audit --import mine digits-c", ["digits-cnn"]),
        ("retroact audit digits-cnn --json a.json --marg", ["--margin"]),
        ("retroact --import mi", []),
        ("retroact store rep", ["repair"]),
    ],
)
def test_a_shell_is_told_how_words_go_on_and_no_error(complete, words, told):
    assert complete(words) == (0, told, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_printed_and_that_is_all(call, monkeypatch, shell):
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: shell)
    code, out, err = call("--show-completion", shell)
    assert code == 0 and f"complete_{shell}" in out and err == ""


def test_completing_is_a_fine_end_and_needs_no_torch():
    asked = {"_RETROACT_COMPLETE": "complete_bash", "COMP_CWORD": "3"}
    for words in ("retroact audit d", "retroact attack digits-cnn P", "retroact tune digits-cnn J"):
        program = (
            "import sys; sys.argv = ['retroact']\n"
            "import retroact.cli as cli\n"
            "try: cli.main()\n"
            "finally: print('torch' in sys.modules, file=sys.stderr)"
        )
        made = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **asked, "COMP_WORDS": words},
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0 and made.stderr == "False\n"


def test_every_word_that_list_takes_is_completed(complete, call, monkeypatch):
    told = complete("retroact list ")[1]
    monkeypatch.delenv("_RETROACT_COMPLETE")
    assert f"expected one of: {', '.join(told)}" in call("list", "nothing")[2]
