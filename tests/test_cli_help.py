"""Help and JSON, alike in every command: an example that can be typed, exit codes, --json."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import retroact
from retroact.cli import listing
from retroact.cli.app import app
from retroact.cli.codes import EPILOG
from retroact.spec import MANY, known


def commands() -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """Every command by the words that call it."""
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        if inner is None:
            yield name, command
        else:
            yield from ((f"{name} {word}", one) for word, one in inner.items())


COMMANDS = dict(commands())
OPTIONS = {n: {o for p in c.params for o in p.opts} for n, c in COMMANDS.items()}


def examples(command: typer.core.TyperCommand) -> list[list[str]]:
    """The words of each command under "Example:", without `retroact`."""
    _, _, text = (command.help or "").partition("Example:\n")
    lines = text.split("\n\n")[0].replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.strip()]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example_that_is_a_right_call_and_the_exit_codes(name):
    command = COMMANDS[name]
    assert command.epilog == EPILOG
    told = examples(command)
    assert any(" ".join(words).startswith(name) for words in told), name
    for words in told:
        called = " ".join(words[:2]) if words[0] == "store" else words[0]
        COMMANDS[called].make_context(
            called, words[len(called.split()) :]
        )  # raises for a wrong one


def test_commands_that_pages_name_are_right_calls():
    pages = Path(retroact.__file__).parent.rglob("*.html")
    told = [
        c for page in pages for c in re.findall(r"<code>(retroact .*?)</code>", page.read_text())
    ]
    whole = [re.sub(r"{{.*?}}", "1", command) for command in told if len(command.split()) > 2]
    assert len(whole) >= 2
    for name, words in ((w[1], w[2:]) for w in map(shlex.split, whole)):
        COMMANDS[name].make_context(name, words)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_line_of_help_fits_80_columns(name, call):
    text = call(*name.split(), "--help")[1]
    assert max(map(len, text.splitlines())) <= 80 and "Example:" in text and "130  stop" in text
    assert "--import MODULE" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_a_flag_with_a_path_beside_it(name):
    flags = {o: p for p in COMMANDS[name].params for o in p.opts if o in ("--json", "--json-out")}
    assert flags["--json"].is_flag and not flags["--json-out"].is_flag


def test_wherever_a_network_is_taken_it_is_brought_alike():
    takes = [name for name, options in OPTIONS.items() if "--weights" in options]
    assert len(takes) >= 12
    for name in takes:
        assert OPTIONS[name] >= {"--mean", "--std", "--shape", "--device"}, name
    dear = ("audit", "check", "harden", "study", "tune", "attack", "sweep", "train")
    assert all("--dry-run" in OPTIONS[name] for name in dear)


def test_kinds_that_errors_do_not_list_are_listed():
    from retroact.activations.activation import Activation
    from retroact.crafting.attack import Attack

    for kind, word in ((Attack, "attacks"), (Activation, "activations")):
        assert len(known(kind)) > MANY and word in listing.KINDS


@pytest.mark.parametrize("kind", listing.KINDS)
def test_no_sentence_of_a_list_is_cut_within_a_parenthesis(kind):
    for row in listing.list_specs(kind):
        assert row["what"].count("(") == row["what"].count(")"), row["name"]


def test_json_goes_into_a_file_and_people_are_told_all_the_same(call, tmp_path):
    code, out, err = call("list", "threats", "--json-out", "t.json")
    told = json.loads((tmp_path / "t.json").read_text())
    assert code == 0 and "wrote t.json" in err and all(row["name"] in out for row in told)
    code, out, _ = call("list", "threats", "--json", "--json-out", "t.json")
    assert json.loads(out) == told == json.loads((tmp_path / "t.json").read_text())
    code, _, err = call("list", "threats", "--json-out", "nowhere/t.json")
    assert code == 3 and "make it first" in err


def test_an_audit_as_json_answers_a_script_and_says_why_on_stderr(call, brief):
    words = ("audit", "digits-cnn", "--against", "digits-cnn", "--threat", "Linf(0.1)")
    more = ("--data", "digits[:60]", "--quick", "--require", "not-weaker", "--margin", "0.1")
    code, out, err = call(*words, *more, "--json")
    assert code == 0 and json.loads(out)["n"] == 60 and "NOT WEAKER: the lower end" in err
    assert not re.search("NOT WEAKER: the lower end", out)
