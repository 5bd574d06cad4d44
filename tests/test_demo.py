"""The demo from the command line: what is said when, and that every network has one number."""

import io
import json
import re
import shlex
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import typer
from PIL import Image
from rich.console import Console

from retroact import JumpReLU, demo
from retroact.auditing.battery import QUICK
from retroact.cli import console
from retroact.cli.app import app
from retroact.experiments.tuning import Point, Tuning
from retroact.nets import sources
from retroact.reports import walk
from retroact.spec import show

SMALL = replace(
    demo.SCENES["digits"],
    test="digits[:24]",
    recipe="Hardening(learn='all', steps=12, batch=64, lr=0.003, attack_steps=3)",
)

SPLITS = ("test", "test", "train")


class Audience:
    """Keeps what it is told, in order."""

    def __init__(self):
        self.told: list[tuple[str, object]] = []

    def say(self, line):
        self.told.append(("said", line))

    def begin(self, line):
        self.told.append(("begun", line))

    def watch(self, doing, done):
        self.told.append((doing, done))

    @property
    def lines(self):
        return [line for kind, line in self.told if kind == "said"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A small demo, with what it told while it ran."""
    folder, audience = tmp_path_factory.mktemp("demo"), Audience()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(demo.SCENES, "digits", SMALL)
        made = demo.run("digits", folder / "demo.html", audience=audience)
    return SimpleNamespace(made=made, audience=audience, folder=folder)


@pytest.mark.slow
def test_every_network_has_one_verified_number_by_the_battery_of_the_audit(ran):
    plain, *others = ran.made.networks
    audits = [one.numbers for one in others]
    assert len(audits) == 3 and {made.battery for made in audits} == {show(QUICK)}
    assert {round(24 * made.verified.before) for made in audits} == {plain.really}
    assert {round(24 * made.claimed.before) for made in audits} == {plain.looks}
    assert {made.n for made in audits} == {24}
    text = ran.made.page.read_text()
    for one in ran.made.networks:
        said = re.findall(rf"{re.escape(one.name)}: looks like (\d+), really (\d+)", text)
        assert len(set(said)) <= 1
        lane = re.search(rf"<h3>{re.escape(one.name)}</h3>(.*?)</section>", text, re.S)[1]
        assert f'aria-label="really {one.really} of 24' in lane


@pytest.mark.slow
def test_each_network_is_told_as_soon_as_it_is_measured(ran):
    told, networks = ran.audience.told, ran.made.networks
    assert told[0] == ("said", SMALL.intro)
    right = f"Of 24 images that it has never seen it reads {networks[0].clean} rightly."
    assert ran.audience.lines[1] == right
    assert ran.audience.lines[3:] == [one.line for one in networks]
    at = [told.index(("said", one.line)) for one in networks]
    doing = [kind for kind, _ in told]
    for one, before, here in zip(networks[2:], at[1:-1], at[2:], strict=True):
        assert f"attacking {one.name}" in doing[before:here], "it is told before it is attacked"
    shares = [share for kind, share in told if kind not in ("said", "begun")]
    assert shares == sorted(shares) and shares[0] == 0 and 0.8 < shares[-1] <= 1
    assert doing.index("hardening the network") > at[2]


@pytest.mark.slow
def test_each_number_is_told_before_the_next_is_measured(ran):
    told, (plain, *others) = ran.audience.told, ran.made.networks
    first = told.index(("begun", f"plain: looks like {plain.looks}"))
    assert first < [kind for kind, _ in told].index("attacking SReLU(100)"), "before any audit"
    for one in ran.made.networks:
        begun, said = (told.index(at) for at in (("begun", _begin(one)), ("said", one.line)))
        assert begun < said and one.line.startswith(_begin(one))
    ends = told.index(("said", plain.line)), told.index(("begun", _begin(others[0])))
    assert ends[0] < ends[1], "the plain network's line ends before the next is attacked"


def _begin(one):
    return f"{one.name}: looks like {one.looks}"


@pytest.mark.slow
def test_a_demo_leaves_its_page_and_nothing_else(ran):
    assert [p.name for p in ran.folder.iterdir()] == ["demo.html"]
    assert json.loads(json.dumps(ran.made.to_json()))[0]["name"] == "SReLU(100)"
    assert "n = 24" in ran.made.summary and str(ran.made.page) in ran.made.summary


def test_the_demo_knows_its_data(call):
    code, out, err = call("demo", "--data", "imagenet")
    assert code == 3 and "the demo knows digits and mnist" in err and not out


@pytest.mark.slow
def test_the_page_says_once_that_it_is_your_turn_and_shows_cards_of_both_networks(ran):
    text = ran.made.page.read_text()
    assert (
        text.lower().count(">now yours") == 1 and text.lower().count("now yours") == 2
    )  # a link's
    shown = [one for one in ran.made.networks if one.case is not None]
    assert len(shown) > 2 and text.count('<details class="example"') == len(shown)
    assert text.count("The margin: above 0") > 1
    assert f"on {shown[1].name}: broken by attack" in text and "on plain: " in text


@pytest.mark.parametrize("command", demo.YOURS)
def test_what_to_try_next_is_said_as_the_commands_have_it(command):
    assert all(len(line) <= 78 for line in command.splitlines())
    program, name, *words = shlex.split(command.replace("\\\n", " "))
    found = typer.main.get_command(app).commands[name]
    asked = found.make_context(name, words)
    assert program == "retroact" and asked.params["net"] == "mine:net"


@pytest.fixture
def yours(tmp_path, monkeypatch):
    """A network and a folder of images as the demo's last words have them."""
    sources._find.cache_clear()  # of the folder of this name that another test stood in
    sources._decode.cache_clear()
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n"
        "    torch.manual_seed(0)\n"
        "    layers = nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2)\n"
        "    return nn.Sequential(nn.Flatten(), *layers)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    for label, shade in (("bright", 200), ("dark", 50)):
        (tmp_path / "pics" / label).mkdir(parents=True)
        for i in range(12):
            Image.new("L", (8, 8), shade + i).save(tmp_path / "pics" / label / f"{i}.png")


@pytest.mark.parametrize(
    ("command", "n", "split"), list(zip(demo.YOURS, (4, 4, 18), SPLITS, strict=True))
)
def test_what_to_try_next_runs_as_it_is_printed_and_says_what_it_takes(
    call, yours, brief, command, n, split
):
    words = shlex.split(command.replace("\\\n", " "))[1:]
    short = ("--steps", "3") if words[0] == "harden" else ("--quick",)
    code, out, err = call(*words, *short)
    assert code == 0 and out
    drawn = f"no test split of its own, so its {split} split is {n} of its 24 examples"
    assert err.count("folder:pics has") == 1 == err.count(drawn)


def test_hardening_on_a_bare_folder_names_the_split_to_take(call, yours):
    words = ("harden", "mine:net", "--threat", "Linf(0.03)", "--data")
    code, _, err = call(*words, "folder:pics")
    assert code == 3 and "is learned or chosen on; use folder:pics/train" in err
    code, _, err = call(*words, "folder:pics/train", "--held", "folder:pics")
    assert code == 3 and "is learned or chosen on; use folder:pics/validation" in err


def test_a_sweep_says_once_what_it_takes_of_a_folder(call, yours):
    words = ("--threat", "Linf(0.03)", "--data", "folder:pics", "--json")
    code, out, err = call("sweep", "--net", "mine:net", "--attack", "FGSM", *words)
    assert code == 0 and json.loads(out)[0]["n"] == 4 and err.count("4 of its 24 examples") == 1


def test_no_line_of_the_demo_but_its_results_goes_to_stdout_where_nobody_watches(capsys):
    with console.story("starting") as told:
        told.watch("attacking", 0.5)
        told.say("plain: looks like 69, really 58")
    with console.story("starting", quiet=True) as told:
        told.say("not said")
    assert capsys.readouterr() == ("plain: looks like 69, really 58\n", "")


def test_a_line_that_was_begun_is_ended_where_it_stands(capsys):
    with console.story("starting") as told:
        told.begin("plain: looks like 69")
        told.begin("plain: looks like 69")  # by the audit too
        assert capsys.readouterr().out == "plain: looks like 69"
        told.watch("attacking", 0.5)
        told.say("plain: looks like 69, really 58")
        told.begin("SReLU(100): looks like 99")
        told.say("plain: looks like 70, really 58")
        told.begin("cut off")
    lines = [", really 58", "SReLU(100): looks like 99", "plain: looks like 70, really 58"]
    assert capsys.readouterr().out.splitlines() == [*lines, "cut off"]


def test_where_a_bar_is_seen_a_line_that_was_begun_stands_beside_it(monkeypatch, capsys):
    seen = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(console, "err", seen)
    with console.story("starting") as told:
        told.begin("plain: looks like 69")
        told.watch("attacking SReLU(100)", 0.5)
        assert told.described == "plain: looks like 69 …"
        told.say("plain: looks like 69, really 58")
        assert told.described == "attacking SReLU(100)"
    assert capsys.readouterr().out == "plain: looks like 69, really 58\n"


def test_detail_has_one_verified_number_for_each_network_and_recommends_nothing(tmp_path):
    numbers = SimpleNamespace(gained=0, lost=2, gain=-0.02, interval=(-0.06, 0.02))
    jumping = walk.Shown("JumpReLU(0.4)", "", numbers, 1)
    points = [Point(JumpReLU(k), k, 1.0, 0.7, v) for k, v in ((0.0, 0.59), (0.4, 0.61))]
    tuning = Tuning(tuple(points), "kappa", 0.97, "digits/validation", "Linf(eps=0.1)", 179)
    made = demo.Walk(demo.SCENES["digits"], (jumping,), tuning, tmp_path / "d.html")
    assert "recommend" not in made.tuned and "verified" not in made.tuned
    assert "tuning's own attacks on digits/validation" in made.tuned
    assert "JumpReLU(0.4) -2 (-6 to +2) points beside the plain network" in made.tuned
    caption, figure = demo._draw(made.scene, tuning)
    assert "verified" not in caption + figure and "under tuning's attacks" in figure
