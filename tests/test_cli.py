"""The command line, run as a person runs it: words in, tables or JSON out, errors with their
cure."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from retroact.cli import console

ATTACK = ("attack", "digits-cnn", "PGD(steps=5)", "--threat", "Linf(0.1)", "--data", "digits[:40]")


def test_attack_prints_a_table_and_stores_the_cell(call):
    code, out, _ = call(*ATTACK)
    assert code == 0 and "digits-cnn" in out and "Linf(eps=0.1) on digits[:40]" in out
    code, out, _ = call("list", "store", "--json")
    (row,) = json.loads(out)
    assert row["attack"] == "PGD(steps=5)" and row["n"] == 40
    code, out, err = call("list", "store", "--remove", "*PGD*")
    assert code == 0 and "removed 1 results" in err


def test_the_three_ways_of_the_readme_differ_as_they_should(call):
    words = (
        "attack",
        "digits-cnn",
        "PGD(steps=40, loss='margin')",
        "--threat",
        "Linf(0.1)",
        "--data",
        "digits[:150]",
    )
    hard = ("--activation", "JumpReLU(kappa=0.8)")
    found = [
        call(*words, *more, "--json") for more in ((), hard, (*hard, "--source", "digits-cnn"))
    ]
    plain, white, gray = (json.loads(out)[0] for _, out, _ in found)
    assert [r["knowledge"] for r in (plain, white, gray)] == ["white", "white", "gray"]
    assert plain["activation"] is None and white["activation"] == "JumpReLU(kappa=0.8)"
    assert gray["source"] == "digits-cnn"
    assert len({r["key"] for r in (plain, white, gray)}) == 3
    smooth = json.loads(call(*words, *hard, "--beta", "10", "--json")[1])[0]
    assert smooth["robust_accuracy"] < white["robust_accuracy"]


def test_dry_run_says_the_cost_and_writes_nothing(call, tmp_path):
    code, out, _ = call(*ATTACK, "--dry-run", "--json")
    told = json.loads(out)
    assert code == 0 and told["gradients at most"] == 200 and told["cells"] == 1
    assert list(tmp_path.iterdir()) == []


def test_sweep_then_report(call, tmp_path):
    words = (
        "sweep",
        "--net",
        "digits-cnn",
        "--attack",
        "FGSM",
        "--attack",
        "PGD(steps=3)",
        "--threat",
        "Linf(0.05)",
    )
    more = (
        "--threat",
        "Linf(0.1)",
        "--activation",
        "none",
        "--activation",
        "SReLU(alpha=10)",
        "--data",
        "digits[:30]",
    )
    code, out, _ = call(*words, *more, "--workers", "1", "--keep", "1", "--json")
    assert code == 0 and len(json.loads(out)) == 8
    files = ("--html", "r.html", "--md", "r.md", "--csv", "r.csv")
    code, _, err = call("report", *files)
    assert code == 0 and err.count("wrote") == 3
    page = (tmp_path / "r.html").read_text()
    # nothing is fetched
    assert not re.search(r"<(link|iframe)|(src|href)=.(?!data:|#)|fetch", page)
    # of each cell one example: as it was, as it became, what moved
    assert page.count('<details class="example"') == 8 and "Accuracy against eps" in page
    assert page.count("data:image/png;base64") == 3 * 8
    assert (tmp_path / "r.md").read_text().count("SReLU(alpha=10.0)") >= 4
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 9
    code, out, _ = call("report", "--cells", "*FGSM*", "--json")
    assert len(json.loads(out)) == 4


def test_audits_are_laid_side_by_side(call, tmp_path):
    stored = Path(__file__).parent / "stored" / "audit-0.1.0.json"
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(stored.read_text())
    code, out, _ = call("report", "a.json", "b.json")
    assert code == 0 and out.startswith("Of 2 audits: 2 ")
    code, _, err = call("report", "a.json", "b.json", "--html", "l.html", "--md", "l.md")
    assert code == 0 and err.count("wrote") == 2
    assert (tmp_path / "l.html").read_text().count('<tr id="audit-') == 2
    code, out, _ = call("report", "--json", "a.json", "b.json")
    assert [row["n"] for row in json.loads(out)] == 2 * [json.loads(stored.read_text())["n"]]
    code, _, err = call("report", "a.json", "--cells", "x")
    assert code == 2 and "expected audits or --cells" in err


def test_retrofit_saves_a_network_that_attacks_take(call, tmp_path):
    code, out, _ = call(
        "retrofit",
        "digits-cnn",
        "JumpReLU(kappa=0.5)",
        "--out",
        "h.safetensors",
        "--data",
        "digits",
        "--json",
    )
    told = json.loads(out)
    assert code == 0 and told["clean accuracy after"] > 0.9
    assert told["found"] == told["replaced"] == len(told["sites"]) == 3
    code, out, _ = call(
        "attack",
        "h.safetensors",
        "FGSM",
        "--threat",
        "Linf(0.1)",
        "--data",
        "digits[:40]",
        "--json",
    )
    direct = call(
        "attack", "digits-cnn", "FGSM", "--activation", "JumpReLU(kappa=0.5)", *ATTACK[3:], "--json"
    )
    assert json.loads(out)[0]["robust_accuracy"] == json.loads(direct[1])[0]["robust_accuracy"]


def test_tune_prints_a_curve(call):
    words = (
        "tune",
        "digits-cnn",
        "JumpReLU",
        "--threat",
        "Linf(0.1)",
        "--data",
        "digits/validation[:40]",
    )
    code, out, _ = call(*words, "--grid", "0,0.5", "--json")
    told = json.loads(out)
    assert code == 0 and [p["value"] for p in told["points"]] == [0, 0.5] and "recommended" in told


AUDIT = (
    "audit",
    "digits-cnn",
    "SReLU(100)",
    "--threat",
    "Linf(0.1)",
    "--data",
    "digits[:60]",
    "--quick",
)
SHORT = ("--claimed", "PGD(steps=2)")  # for what does not hang on what the claimed attack finds


def test_audit_prints_the_verdict_writes_its_files_and_fails_on_what_is_named(
    call, tmp_path, brief
):
    files = ("--html", "a.html", "--md", "a.md", "--json-out", "a.json")
    asked = ("--claimed", "PGD(steps=9)", "--seed", "4", "--fail-on", "harmful, Masked")
    code, out, err = call(*AUDIT, *files, *asked)
    told = json.loads((tmp_path / "a.json").read_text())
    # the files are there all the same
    assert code == 1 and err.count("wrote") == 3
    assert "MASKED by saturation" in out and told["plainly"] in " ".join(out.split())
    shares = [f"{100 * told[k]:.1f}" for k in ("clean", "claimed", "verified")]
    assert re.search(r"digits-cnn \+ \S*SReLU\S+ +" + " +".join(shares), out)
    assert "! logit scale, a sign of saturation" in out and "! gradient fidelity" not in out
    assert (
        told["claimed_attack"] == "PGD(steps=9)"
        and told["pedigree"]["seed"] == 4
        and told["n"] == 60
    )
    assert told["claimed"] > 0.9 > told["verified"] and told["effect"] in out
    assert (
        told["plainly"] in (tmp_path / "a.md").read_text()
        and "<svg" in (tmp_path / "a.html").read_text()
    )


def test_audit_does_not_fail_on_what_it_did_not_find(call, brief):
    words = ("audit", "digits-cnn", "--against", "digits-cnn", *AUDIT[3:], *SHORT)
    code, out, _ = call(*words, "--fail-on", "MASKED,HARMFUL,GENUINE")
    assert code == 0 and "NO EFFECT" in out


def test_selftest_fails_where_a_check_fails(call, monkeypatch):
    from types import SimpleNamespace

    from retroact.auditing import selftest
    from retroact.training import anew, hardening

    made = SimpleNamespace(verdict="as it should be")
    checks = [selftest.Check("one", "that", made, True), selftest.Check("two", "this", made, True)]
    monkeypatch.setattr(hardening, "harden", lambda *_: SimpleNamespace(net=None))
    monkeypatch.setattr(anew, "trained_anew", lambda name, seed: None)
    monkeypatch.setattr(selftest, "selftest", lambda *_, **__: checks)
    code, out, _ = call("selftest")
    assert code == 0 and out.count("passed: ") == 2 and "2 of 2 passed" in out
    checks[1] = selftest.Check("two", "this", made, False)
    code, out, _ = call("selftest")
    assert code == 1 and "FAILED: two: expected this" in out


HARDEN = ("harden", "digits-cnn", "--threat", "Linf(0.1)", "--data", "digits/train[:200]")


def test_harden_saves_a_network_that_an_audit_takes(call, tmp_path, brief):
    small = (
        "--steps",
        "4",
        "--batch",
        "50",
        "--held",
        "digits/validation[:80]",
        "--out",
        "h.safetensors",
        "--seed",
        "2",
    )
    code, out, _ = call(*HARDEN, *small, "--keep", "0.5")
    assert code == 0 and re.search(r"0\.00 +9\d\.\d", out) and re.search(r"1\.00 +\d\d\.\d", out)
    assert "learned: 122 of 38282 numbers (shifts)" in out and "saved: h.safetensors" in out
    code, out, _ = call(*HARDEN, *small, "--attack-steps", "2", "--bf16", "--json")
    told = json.loads(out)
    assert (
        told["recipe"] == "Hardening(learn='shifts', steps=4, batch=50, attack_steps=2, bf16=True)"
    )
    assert (
        [p["dose"] for p in told["curve"]] == [0.0, 1.0]
        and told["dose"] == 1.0
        and told["learned"] == 122
    )
    code, out, _ = call(*AUDIT[:2], "--against", "h.safetensors", *AUDIT[3:], *SHORT)
    assert code == 0 and "ShiftedReLU" in out


def test_calibrate_prints_an_activation_that_every_command_takes(call, brief):
    words = ("calibrate", "digits-cnn", "MeanSparse(0.3)", "--data", "digits/train[:200]")
    code, out, _ = call(*words, "--out", "means.safetensors")
    text = out.strip()
    assert code == 0 and text.startswith("MeanSparse(alpha=0.3, file='means.safetensors', sha256='")
    told = json.loads(call(*words, "--out", "again.safetensors", "--json")[1])
    assert told["activation"] == text.replace("means.", "again.")
    code, out, _ = call("retrofit", "digits-cnn", text, "--out", "hard.safetensors")
    assert code == 0 and "replaced: 3" in out
    os.remove("means.safetensors")
    data = ("--data", "digits[:40]", "--threat", "Linf(0.1)")
    of_file = json.loads(call("attack", "hard.safetensors", "FGSM", *data, "--json")[1])
    text = told["activation"]
    of_text = json.loads(
        call("attack", *ATTACK[1:2], "FGSM", *data, "--activation", text, "--json")[1]
    )
    assert of_file[0]["robust_accuracy"] == of_text[0]["robust_accuracy"]
    code, out, _ = call("audit", "digits-cnn", text, *data, "--quick", *SHORT)
    assert code == 0 and "MeanSparse" in out
    code, _, err = call(
        "calibrate", "digits-cnn", "MeanSparse", *data[:2], "--out", "m.safetensors"
    )
    assert code == 2 and "is test data, on which nothing is measured" in err
    code, _, err = call(*words, "--out", "means.json")
    assert code == 2 and "ends in .safetensors" in err
    code, _, err = call("retrofit", "digits-cnn", "MeanSparse(0.3)")
    assert code == 2 and "retroact calibrate" in err


MINE = """
import torch
from torch import nn
import retroact as ra

def build():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU())
    return ra.Classifier(module, 0.5, 0.5, shape=(1, 8, 8))
"""


def test_a_network_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    words = (
        "attack",
        "mine:build",
        "FGSM",
        "--threat",
        "Linf(0.1)",
        "--data",
        "digits[:20]",
        "--json",
    )
    # a process of its own: what stands beside the user is found only from there
    done = subprocess.run(
        [sys.executable, "-m", "retroact.cli", *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    told = json.loads(done.stdout)
    assert told[0]["net"] == "mine:build" and told[0]["n"] == 20


OURS = """
import retroact as ra

def build():
    zoo = ra.load("digits-cnn")
    mean, std = zoo.mean.flatten().tolist(), zoo.std.flatten().tolist()
    return ra.Classifier(zoo.module, mean, std, shape=(1, 8, 8))
"""


def test_a_hardened_network_of_ones_own_is_read_again_by_every_command(call, tmp_path, monkeypatch):
    (tmp_path / "ours_here.py").write_text(OURS)
    threat, digits = ("--threat", "Linf(0.1)"), ("--data", "digits[:40]")
    learn = (
        "--data",
        "digits/train[:200]",
        "--steps",
        "4",
        "--batch",
        "50",
        "--out",
        "h.safetensors",
    )
    code, _, err = call("harden", "ours_here:build", *threat, *learn)
    assert code == 0, err
    code, out, err = call(
        "audit",
        "ours_here:build",
        "--against",
        "h.safetensors",
        *threat,
        *digits,
        "--quick",
        "--dry-run",
    )
    assert code == 0 and "ShiftedReLU" in out
    assert "running" not in err  # the command itself names ours_here:build
    more = ("FGSM", *threat, *digits, "--json")
    words = (
        ("h.safetensors", *more),
        ("ours_here:build", *more, "--weights", "h.safetensors"),
        ("ours_here:build", *more),
    )
    bare, named, plain = (json.loads(call("attack", *w)[1])[0] for w in words)
    assert (
        bare["key"] == named["key"] != plain["key"]
        and bare["net"] == "ours_here:build with h.safetensors"
    )
    assert bare["robust_accuracy"] != plain["robust_accuracy"]
    # no retrofit in it
    call("harden", "ours_here:build", *threat, *learn[:-1], "all.safetensors", "--learn", "all")
    for words in (
        (
            "tune",
            "all.safetensors",
            "JumpReLU",
            *threat,
            "--data",
            "digits/validation[:20]",
            "--grid",
            "0.1",
        ),
        ("retrofit", "all.safetensors", "JumpReLU(0.1)"),
        ("harden", "all.safetensors", *threat, *learn[:-1], "again.safetensors"),
        ("export", "all.safetensors", "all.pt2"),
        (
            "sweep",
            "--net",
            "all.safetensors",
            "--attack",
            "FGSM",
            *threat,
            *digits,
            "--workers",
            "1",
        ),
    ):
        code, _, err = call(*words)
        assert (
            code == 0
            and f"all.safetensors names ours_here:build: running {tmp_path / 'ours_here.py'}" in err
        )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    code, _, err = call("attack", str(tmp_path / "h.safetensors"), "FGSM", *threat, *digits)
    assert code == 3 and "running" not in err and "ours_here:build --weights" in err


PLAIN = """
from torch import nn

def build(gelu=nn.GELU):  # a plain module that says no shape, as a tutorial has it
    layers = nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), gelu(), nn.Linear(32, 10)
    return nn.Sequential(nn.Flatten(), *layers)
"""
LEFT = "1 gelu (--also replaces a kind)"


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """A module of one's own in this folder, and a checkpoint of it as a trainer leaves one."""
    import torch
    from torch import nn

    # a command is a process of its own, which has seen no module of this name in another folder
    monkeypatch.delitem(sys.modules, "plain_here", raising=False)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not Path(p, "plain_here.py").exists()])
    (tmp_path / "plain_here.py").write_text(PLAIN)
    torch.manual_seed(3)
    body = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 10)
    )
    state = {f"module.net.{k}": v for k, v in body.state_dict().items()} | {
        "criterion.weight": torch.ones(10)
    }
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "best.pth")
    return ("--weights", "best.pth")


SAID = (
    "best.pth: weights found under 'state_dict'; prefix 'module.net.' taken off; left aside:"
    " criterion.weight"
)
LINF = ("--threat", "Linf(0.1)")
JUMP = "JumpReLU(0.3)"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("attack", "NET", "FGSM", *LINF, "--data", "digits[:20]"), ""),
        (("attack", "NET", "FGSM", *LINF, "--data", "digits[:20]", "--activation", JUMP), LEFT),
        (
            (
                "sweep",
                "--net",
                "NET",
                "--attack",
                "FGSM",
                *LINF,
                "--data",
                "digits[:20]",
                "--activation",
                JUMP,
            ),
            LEFT,
        ),
        (
            ("tune", "NET", "JumpReLU", *LINF, "--data", "digits/validation[:20]", "--grid", "0.1"),
            LEFT,
        ),
        (
            (
                "harden",
                "NET",
                *LINF,
                "--data",
                "digits/train[:40]",
                "--steps",
                "1",
                "--out",
                "h.safetensors",
            ),
            LEFT,
        ),
        (("export", "NET", "e.pt2", "--activation", JUMP, "--data", "digits[:20]"), LEFT),
        (
            ("retrofit", "NET", JUMP, "--data", "digits[:20]", "--out", "h.safetensors"),
            "left alone: 1 gelu",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_command_takes_a_checkpoint_and_names_the_kinds_that_it_leaves_alone(
    call, plain, tmp_path, words, says
):
    words = ["plain_here:build" if word == "NET" else word for word in words]
    code, out, err = call(*words, *plain)
    assert code == 0 and err.count(SAID) == 1
    assert says in out + err and bool(says) == ("gelu" in out + err)
    if says:
        code, out, err = call(*words, *plain, "--also", "gelu")
        assert code == 0 and "left alone" not in err and LEFT not in out
    if "h.safetensors" in words:
        code, out, err = call("attack", "h.safetensors", "FGSM", *LINF, "--data", "digits[:20]")
        assert code == 0 and "left alone" not in err  # the file says which kinds were replaced


def test_an_audit_takes_a_checkpoint_on_both_sides_and_names_what_it_leaves_alone(
    call, plain, tmp_path, brief
):
    train = (
        "harden",
        "plain_here:build",
        *LINF,
        "--learn",
        "all",
        "--data",
        "digits/train[:600]",
        "--steps",
        "60",
        "--lr",
        "0.01",
        "--attack-steps",
        "1",
        "--clean-weight",
        "1",
    )
    assert call(*train, *plain, "--out", "t.safetensors")[0] == 0
    audit = (
        "audit",
        "plain_here:build",
        *LINF,
        "--data",
        "digits[:40]",
        "--quick",
        *SHORT,
        "--weights",
        "t.safetensors",
    )
    code, out, err = call(*audit, JUMP)
    assert code == 0 and LEFT in err and "JumpReLU(kappa=0.3)" in out
    code, _, err = call(*audit, JUMP, "--also", "gelu", "--dry-run")
    assert code == 0 and "left alone" not in err
    code, out, _ = call(
        *audit, "--against", "plain_here:build", "--against-weights", "t.safetensors"
    )
    assert code == 0 and "verified +0.0 points" in out


def test_a_source_of_the_same_name_has_the_same_weights_and_a_sweep_pairs_nets_with_theirs(
    call, plain, tmp_path
):
    words = (
        "attack",
        "plain_here:build",
        "FGSM",
        *LINF,
        "--data",
        "digits[:20]",
        "--source",
        "plain_here:build",
    )
    told = json.loads(call(*words, *plain, "--json")[1])[0]
    assert told["source"] == told["net"] == "plain_here:build with best.pth"
    words = ("sweep", "--net", "digits-cnn", "--net", "plain_here:build", "--attack", "FGSM", *LINF)
    more = (
        "--data",
        "digits[:20]",
        "--weights",
        "none",
        *plain,
        "--source",
        "plain_here:build",
        "--workers",
        "1",
    )
    told = json.loads(call(*words, *more, "--json")[1])
    assert {t["net"] for t in told} == {"digits-cnn", "plain_here:build with best.pth"}
    assert {t["source"] for t in told} == {None, "plain_here:build with best.pth"}
    code, _, err = call(*words, "--data", "digits[:20]", *plain)
    assert code == 2 and "one --weights for each of 2 --net" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("attack", "digit-cnn", *ATTACK[2:]), "did you mean digits-cnn?"),
        (("attack", "digits-cnn", "PDG(steps=5)", *ATTACK[3:]), "did you mean PGD(steps=5)?"),
        (
            ("attack", "digits-cnn", "Linf(0.1)", *ATTACK[3:]),
            "expected an attack: `retroact list attacks`",
        ),
        (
            ("attack", "digits-cnn", "JumpReLU(1.0)", *ATTACK[3:]),
            "an attack: `retroact list attacks` names",
        ),
        ((*ATTACK, "--goal", "PGD()"), "expected a goal, one of: LeastLikely, PerImage, Random, "),
        ((*ATTACK[:4], "SReLU(10)", *ATTACK[5:]), "expected a threat model, one of: L"),
        (
            (*ATTACK, "--activation", "Linf(1)"),
            "expected an activation: `retroact list activations` names all",
        ),
        ((*ATTACK[:4], "Linf(-1)", *ATTACK[5:]), "greater than 0"),
        ((*ATTACK[:4], "Linf(8)", *ATTACK[5:]), "so 8 of 255 is Linf(8/255)"),
        ((*ATTACK[:4], "linf(0.1)", *ATTACK[5:]), "did you mean Linf(0.1)? (known: L"),
        (
            (*ATTACK[:4], "0.1", *ATTACK[5:]),
            "0.1 is a radius, and which norm it is of is not said: did you mean Linf(0.1)?",
        ),
        (("retrofit", "digits-cnn", "JumpReLU(1.0)", "--out", "h.pth"), "ends in .safetensors"),
        ((*ATTACK[:4], "8/255", *ATTACK[5:]), "did you mean Linf(8/255)?"),
        (("attack", "digits-cnn", "XYZZY", *ATTACK[3:]), "'XYZZY': `retroact list attacks` names"),
        ((*AUDIT, "--json", "a.json"), "--json prints, and takes no file: --json-out a.json"),
        ((*AUDIT, "--json=a.json"), "--json prints, and takes no file: --json-out a.json"),
        ((*ATTACK, "--mean", "0.5"), "digits-cnn says itself how its pixels are normalised"),
        (("retrofit", "mine:build", JUMP, "--shape", "8x8"), "such as 3,224,224, got '8x8'"),
        (("retrofit", "mine:build", JUMP, "--std", "wide"), "expected numbers such as"),
        (("study", "srelu", "--stored", "--dry-run"), "got both"),
        ((*ATTACK[:6], "digts"), "did you mean 'digits'?"),
        ((*ATTACK, "--activation", "JumpReLU(kappa=nan)"), "nan"),
        ((*ATTACK, "--activation", "JumpReLU(kappa=-1)"), "at least 0"),
        ((*ATTACK, "--dtype", "float7"), "float7"),
        (("list", "nonsense"), "cannot list 'nonsense'"),
        (("train", "nonesuch"), "nonesuch"),
        (("attack",), "Missing argument"),
        (("audit",), "Missing argument 'net'"),
        (("audit", "digits-cnn"), "Missing option '--threat'"),
        ((*AUDIT[:2], *AUDIT[3:]), "either an ACTIVATION"),
        ((*AUDIT, "--against", "digits-cnn"), "either an ACTIVATION"),
        (
            (*AUDIT, "--fail-on", "MASKED,DANGEROUS"),
            "DANGEROUS; expected some of: GENUINE, HARMFUL, NO EFFECT",
        ),
        ((*AUDIT, "--fail-on", " ,"), "names no answer"),
        ((*AUDIT, "--require", "stronger"), "expected one of: not-weaker"),
        ((*AUDIT, "--claimed", "PDG(steps=5)"), "did you mean PGD(steps=5)?"),
        ((*AUDIT, "--margin", "0"), "--margin"),
        (("selftest", "digits-cnn"), "unexpected extra argument"),
        ((*ATTACK, "--also", "gelu"), "says what an activation replaces"),
        (
            (*AUDIT[:2], *AUDIT[3:], "--against", "digits-cnn", "--also", "gelu"),
            "says what an activation replaces",
        ),
        (
            (*ATTACK, "--activation", "JumpReLU(0.5)", "--also", "gleu"),
            "expected kinds of activations",
        ),
        ((*HARDEN, "--keep", "0.9"), "give held="),
        ((*HARDEN, "--learn", "everything"), "everything"),
        (("study", "madry"), "expected one of: jumprelu, srelu"),
        (("study", "srelu", "--only", "figure_99"), "expected some of: figure_1, figure_2"),
        ((*HARDEN, "--out", "h.pt"), "ends in .safetensors"),
    ],
)
def test_a_wrong_call_gets_one_message_with_the_cure_and_leaves_nothing(
    call, tmp_path, words, says
):
    code, _, err = call(*words)
    assert code == 2
    assert says in err
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".sqlite"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*ATTACK[:6], "digits[:4000]"), "examples"),
        ((*ATTACK, "--activation", "JumpReLU(kappa=1)", "--sites", "nowhere*"), "nowhere"),
        ((*ATTACK, "--device", "nonesuch"), "device 'nonesuch' is not here"),
        ((*ATTACK, "--goal", "Targeted(77)"), "77"),
        (
            ("tune", "digits-cnn", "JumpReLU", "--threat", "Linf(0.1)", "--data", "digits"),
            "nothing is tuned on it",
        ),
        (("report", "--store", "none.sqlite"), "no store at none.sqlite"),
        (("retrofit", "torch.nn:Identity", "JumpReLU(1.0)"), "example"),
        ((*AUDIT, "--html", "nowhere/a.html"), "make it first"),
        ((*AUDIT[:4], "Linf(0.6)", *AUDIT[5:]), "expected eps below 0.5"),
        ((*HARDEN[:-1], "digits"), "is test data"),
        (("attack", "none.safetensors", *ATTACK[2:]), "no file none.safetensors"),
        ((*ATTACK[:6], "npz:none.npz"), "there is no such file"),
        (("list", "nets", "--import", "none_such"), "stand in its folder"),
    ],
)
def test_what_cannot_be_run_says_why_and_leaves_nothing(call, tmp_path, words, says):
    code, _, err = call(*words)
    assert code == 3
    assert says in err
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".sqlite"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_control_c_says_how_to_go_on(call, tmp_path, workers):
    words = [
        "sweep",
        "--net",
        "digits-cnn",
        "--threat",
        "Linf(0.1)",
        "--data",
        "digits[:40]",
        "--workers",
        workers,
    ]
    attacks = [w for s in range(1, 40) for w in ("--attack", f"PGD(steps=40, restarts={s})")]
    child = subprocess.Popen(
        [sys.executable, "-m", "retroact.cli", *words, *attacks],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts its background jobs, and all they start, deaf to Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    store = tmp_path / "retroact.sqlite"
    for _ in range(1200):
        time.sleep(0.1)
        if store.exists() and _has_cells(store):
            break
    began = time.monotonic()
    os.kill(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert time.monotonic() - began < 10  # 2 on a machine that has nothing else to do
    rows = json.loads(call("list", "store", "--json")[1])
    assert child.returncode == 130 and len(rows) >= 1
    truth = (
        f"{len(rows)} of 39 cells are in retroact.sqlite; the same command goes on with the rest"
    )
    assert f"stopped; {truth}" in err.replace("\n", " ")


def _has_cells(store):
    with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as db:
        try:
            return db.execute("SELECT count(*) FROM cells").fetchone()[0] > 0
        except sqlite3.OperationalError:  # it is just being made
            return False


@pytest.mark.parametrize("what", ["nets", "attacks", "activations", "threats", "goals", "data"])
def test_lists(call, what):
    code, out, _ = call("list", what, "--json")
    assert code == 0 and len(json.loads(out)) >= 2
    assert call("list", what)[0] == 0


def test_nets_in_detail_are_blocks_that_a_narrow_terminal_holds(call, monkeypatch):
    # two nets, as each of them is loaded and looked through
    monkeypatch.setattr("retroact.nets.pages.names", lambda: ["cifar10-cnn1", "digits-cnn"])
    monkeypatch.setattr(console, "Console", lambda **more: Console(**more | {"width": 80}))
    code, out, _ = call("list", "nets", "--detail")
    lines = out.splitlines()
    assert code == 0 and lines.index("cifar10-cnn1") < lines.index("digits-cnn")
    block = lines[lines.index("digits-cnn") :]
    assert (
        "parameters: 38282" in block[:7] and "sites: conv1_relu, conv2_relu, fc1_relu" in block[:7]
    )
    assert "    (fc2): Linear(in_features=64, out_features=10, bias=True)" in block[:20]


def test_a_fault_of_the_program_is_no_answer(call, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise AssertionError("a fault")

    monkeypatch.setattr("retroact.checkpoint.load", broken)
    code, _, err = call(
        "audit", "digits-cnn", "JumpReLU(1.0)", "--threat", "Linf(0.1)", "--data", "digits[:20]"
    )
    assert code == 3 and "AssertionError: a fault" in err


def test_colons_are_no_emoji(tmp_path):
    # a process of its own, as `call` has other consoles; and a command that needs no torch
    words = [sys.executable, "-m", "retroact.cli", "list", "nowhere:x:"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "cannot list 'nowhere:x:'" in done.stderr


def test_brackets_are_no_markup(call):
    assert "z · 1[z > kappa]" in call("list", "activations")[1]


def test_study_writes_a_page_markdown_and_figures_and_resumes(call, tmp_path):
    words = ("study", "srelu", "--only", "figure_1", "--out", "made", "--workers", "1")
    code, _, err = call(*words)
    assert code == 0 and "srelu.html" in err
    page, text = ((tmp_path / "made" / name).read_text() for name in ("srelu.html", "srelu.md"))
    assert "Figure 1" in page and not re.search(r"<(link|iframe)|(src|href)=.(?!data:|#)", page)
    figures = list((tmp_path / "made" / "srelu").glob("*.svg"))
    assert figures and all(f"srelu/{f.name}" in text for f in figures)
    assert call(*words)[0] == 0 and (tmp_path / "made" / "srelu.md").read_text() == text
    code, out, _ = call(*words, "--json", "--facts", "new/facts.json")
    assert (
        code == 0
        and json.loads(out) == []
        and json.loads((tmp_path / "new" / "facts.json").read_text()) == []
    )
    other = {"key": "0123456789abcdef", "what": "w", "seconds": 1.5, "facts": {}}
    (tmp_path / "facts.json").write_text(json.dumps([other]))
    assert call(*words, "--facts", "facts.json")[0] == 0
    assert json.loads((tmp_path / "facts.json").read_text())[0]["key"] == other["key"]
    kept = (tmp_path / "facts.json").read_text().replace("1.5", "1.50")  # as nobody writes it
    (tmp_path / "facts.json").write_text(kept)
    assert call(*words[:-2], "--stored", "--facts", "facts.json")[0] == 0
    assert (tmp_path / "facts.json").read_text() == kept  # which measures nothing
    code, _, err = call(*words, "--facts", "made/srelu.md")
    assert code == 3 and "expected a JSON list of facts in made/srelu.md" in err


@pytest.mark.parametrize(
    ("cores", "workers", "chosen"),
    [
        (1, None, "Serial()"),
        (2, None, "Threads(workers=2)"),
        (2, 2, "Processes(workers=2)"),
        (4, None, "Processes(workers=4)"),
    ],
)
def test_two_cores_are_shared_by_threads_and_more_by_processes(cores, workers, chosen, monkeypatch):
    from retroact.cli import named
    from retroact.spec import show

    monkeypatch.setattr(named, "cores", lambda: cores)
    assert show(named.executor_of(None, workers)) == chosen


def test_maps_between_kinds_are_said_by_kind(call, tmp_path, monkeypatch):
    (tmp_path / "kinds.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.GELU(), nn.Linear(9, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ("retrofit", "kinds:net", "--data", "digits[:9]")
    code, out, _ = call(*words, "--map", "gelu=relu", "--json")
    assert code == 0 and "ByKind(kinds=('gelu',), activations=(ReLU(),))" in out
    for wrong, said in (
        (("--map", "silu=relu"), "so there is nothing to replace; it calls gelu"),
        (("--map", "gelu"), "expected KIND=ACTIVATION, such as gelu=relu"),
        (("GELU()", "--map", "gelu=relu"), "got both: GELU() and gelu=relu"),
        ((), "expected an activation or --map"),
    ):
        code, _, err = call(*words, *wrong)
        assert code in (2, 3) and said in " ".join(err.split()), wrong


def test_the_version_and_the_short_help_need_no_torch(tmp_path):
    def said(*words):
        return subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "retroact", *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=True,
        )

    version = said("--version")
    assert re.match(r"retroact \d+\.\d+\.\d+ \(torch \S+, numpy \S+, Python 3", version.stdout)
    short, long = said("sweep", "-h"), said("sweep", "--help")
    assert short.stdout == long.stdout and "Usage: python -m retroact sweep" in short.stdout
    for one in (version, short):
        assert not re.search(r"\| torch$", one.stderr, re.MULTILINE)


def test_a_table_that_would_not_fit_is_blocks_without_a_broken_word(call):
    code, wide, _ = call("list", "threats")
    assert code == 0 and wide.splitlines()[0].split() == ["name", "norm", "what"]
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    narrow, listed = (  # no terminal: 80 columns
        subprocess.run(
            [sys.executable, "-m", "retroact", "list", "attacks", *more],
            capture_output=True,
            text=True,
            check=True,
            env=env,
        ).stdout
        for more in ((), ("--json",))
    )
    assert max(map(len, narrow.splitlines())) <= 80
    assert not any(line.endswith(" ") for line in narrow.splitlines())
    names = [line for line in narrow.splitlines() if not line.startswith(" ")]
    assert names == [row["name"] for row in json.loads(listed)]


def test_rows_that_lack_an_entry_stand_in_its_column(capsys):
    rows = [{"key": "a", "seed": 1}, {"key": "b", "crafting": "bfloat16", "seed": 2}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "out", console.Console(width=60))
        console.print_rows(rows)
    head, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["key", "seed", "crafting"]
    assert first == ["a", "1"] and second == ["b", "2", "bfloat16"]
