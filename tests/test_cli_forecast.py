"""--dry-run: what would run, and about how long it would take, without running it."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import retroact as ra
from retroact.auditing.battery import QUICK, THOROUGH, Battery
from retroact.auditing.forecast import _LOOKED, _PREPARED
from retroact.cli.planning import _Item, _sum_up
from retroact.evaluation.trial import Trial, try_gradient
from retroact.experiments import costs
from retroact.experiments.carried import as_json
from retroact.experiments.facts import locked_key
from retroact.experiments.store import Store
from retroact.experiments.tuning import ON_MARGIN, passes_of
from retroact.spec import show
from retroact.studies.study import plan
from retroact.training.recipes import RECIPES

LINF = ("--threat", "Linf(0.1)")
DIGITS = ("--data", "digits[:40]")
HARDEN = ("harden", "digits-cnn", *LINF, "--data", "digits/train[:60]")


TRIED = 0.07  # seconds, so that 4 examples are tried


@pytest.fixture
def nothing_runs(monkeypatch):
    """Fails where anything is attacked or learned; what is tried takes a time that no machine has
    a say in."""

    def took(run):
        run()
        return TRIED

    monkeypatch.setattr("retroact.evaluation.trial._time", took)

    def refuse(*_, **__):
        raise AssertionError("it runs")

    for place in ("auditing.attack_run.AttackRun.attempt", "training.hardening._Learner.learn"):
        monkeypatch.setattr(f"retroact.{place}", refuse)
    monkeypatch.setattr("retroact.experiments.tuning.evaluate", refuse)
    monkeypatch.setattr("retroact.experiments.sweep.run_together", refuse)


@pytest.mark.parametrize(
    ("words", "gradients"),
    [
        (("audit", "digits-cnn", "JumpReLU(0.5)", *LINF, *DIGITS, "--quick"), 2 * 40 * 140),
        (("audit", "digits-cnn", "--against", "digits-cnn", *LINF, *DIGITS, "--quick"), None),
        (("check", "digits-cnn", *LINF, *DIGITS, "--claimed", "FGSM", "--quick"), 40 * 101),
        (("tune", "digits-cnn", "JumpReLU", *LINF, "--data", "digits/validation[:9]"), None),
        ((*HARDEN, "--steps", "5", "--batch", "20", "--attack-steps", "2"), 5 * 20 * 4),
        ((*HARDEN, "--steps", "5", "--clean-weight", "0"), 5 * 60 * 8),
    ],
)
def test_nothing_runs_and_the_cost_is_said(call, tmp_path, nothing_runs, words, gradients):
    code, out, err = call(*words, "--dry-run", "--json")
    told = json.loads(out)
    found = next(value for name, value in told.items() if name.startswith("gradients"))
    assert code == 0, err
    assert found > 0 and gradients in (None, found)
    seconds = next(value for name, value in told.items() if name.startswith("seconds"))
    alone = found * TRIED / 4  # which several cores share
    nets = {"audit": 1 if "--against" in words else 2, "check": 1}.get(words[0], 0)
    prepared = nets * (_PREPARED + _LOOKED * 40 * TRIED / 4)
    assert 0 < seconds <= alone + prepared + 0.1
    assert "about" in told["in words"]
    assert "harden" not in words or seconds == pytest.approx(alone, abs=0.1)
    assert not list(tmp_path.iterdir())


def test_no_example_takes_more_gradients_than_is_forecast():
    for battery in (QUICK, Battery(steps=4, targets=2, targeted_steps=3, finish=2, queries=9)):
        how = {"battery": battery, "claimed": ra.PGD(4)}
        made = ra.audit("digits-cnn", "digits-cnn", "digits[:20]", "Linf(0.05)", **how)
        asked = sum(a.gradients for a in made.after.attacks if not a.asked_by)
        assert 0 < asked <= battery.passes(ra.PGD(4), 20, 10)


def test_what_alarms_ask_for_is_forecast_too():
    made = ra.audit("digits-cnn", "JumpReLU(0.5)", "digits[:12]", "Linf(0.1)", battery="quick")
    asked = sum(attack.gradients for attack in made.after.attacks)
    least = QUICK.passes(ra.PGD(40), 12, 10)
    assert any(attack.asked_by for attack in made.after.attacks), "an alarm fired"
    assert asked <= least + QUICK.more_passes(12, 10)


def test_an_audit_says_both_what_it_takes_and_what_it_may_take(call, nothing_runs):
    words = ("audit", "digits-cnn", "JumpReLU(0.5)", *LINF, *DIGITS, "--quick", "--dry-run")
    told = json.loads(call(*words, "--json")[1])
    assert told["gradients without an alarm"] < told["gradients at most"]
    assert told["seconds without an alarm, about"] < told["seconds at most, about"]
    assert "where no alarm fires, up to about" in told["in words"]


def test_training_says_its_epochs_and_seconds(call, tmp_path):
    code, out, err = call("train", "digits-cnn", "--dry-run", "--json")
    told, recipe = json.loads(out), RECIPES["digits-cnn"].standard
    assert code == 0 and told["epochs"] == recipe.epochs, err
    n = len(ra.data("digits/train"))
    assert told["steps of an epoch"] == -(-n // recipe.batch) and told["seconds, about"] > 0
    assert f"{recipe.epochs} epochs of" in told["in words"] and not list(tmp_path.iterdir())
    half = json.loads(call("train", "digits-cnn", "--epochs", "1", "--dry-run", "--json")[1])
    assert half["epochs"] == 1


def test_what_a_study_measures_without_cells_is_not_said_to_take_a_second():
    said = _sum_up([_Item("line", "", 0, 24, 0.0)])
    assert "the 24 other measurements are not forecast" in said and "second" not in said
    assert "these 3 cells: about 9 s at most" in _sum_up([_Item("a", "", 3, 0, 9.0)])


def test_rounds_are_counted():
    one = QUICK.passes(ra.FGSM(), 1, 10)
    assert one == 1 + 10 + 3 * 15 + 45
    assert THOROUGH.passes(ra.FGSM(), 100, 10) > 8 * 3 * 100 * (5 * 30 + 150)


def test_a_budget_is_never_exceeded(call):
    words = ("audit", "digits-cnn", "JumpReLU(0.5)", *LINF, "--data", "digits", "--budget", "1s")
    told = json.loads(call(*words, "--thorough", "--dry-run", "--json")[1])
    assert told["seconds at most, about"] == 1.0


def test_tuning_counts_the_smoothed_attack_where_there_is_a_jump():
    values, passes = passes_of("JumpReLU", [0.0, 0.5])
    assert (values, passes) == (2, 2 * 80 + ON_MARGIN.passes)  # kappa 0 has none
    assert passes_of("SReLU", [2.0]) == (2, 2 * 80)  # the neutral one is put first


def test_a_network_of_large_images_is_said_what_hardening_takes_before_it_begins(
    call, tmp_path, monkeypatch
):
    (tmp_path / "large_here.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 9, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),\n"
        "                         nn.Flatten(), nn.Linear(4, 2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    x = np.random.default_rng(0).integers(0, 256, (12, 3, 224, 224), dtype=np.uint8)
    np.savez(tmp_path / "large.npz", images=x, labels=np.arange(12) % 2)
    words = ("harden", "large_here:build", *LINF, "--data", "npz:large.npz/train")
    code, _, err = call(*words, "--steps", "2", "--batch", "4", "--attack-steps", "1")
    said = "harden: 2 steps of 4 3x224x224 examples, 3 passes each: about"
    assert code == 0 and said in err and "of memory" in err
    code, _, err = call(*words[:-1], "npz:large.npz", "--dry-run")
    assert code == 3 and "is test data" in err


def test_memory_is_that_of_what_is_kept_for_the_way_back():
    from torch import nn

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 10))
    kept = try_gradient(net, (1, 8, 8), 32).bytes
    assert 4 * 1000 <= kept <= 4 * 3 * 1100  # floats of the hidden layer, not the weights


def test_a_study_says_which_items_lack_what(call, tmp_path, nothing_runs, monkeypatch):
    # it is asked twice, of more networks than the cache of the trials holds
    trial = cache(costs._seconds_per_gradient.__wrapped__)
    monkeypatch.setattr(costs, "_seconds_per_gradient", trial)
    words = ("study", "srelu", "--quick", "--only", "figure_1", "--only", "figure_2", "--dry-run")
    code, out, _ = call(*words, "--json")
    first, second = json.loads(out)
    assert code == 0 and first["item"] == "figure_1" and first["cells to run first"] == 0
    assert second["cells to run first"] > 0
    assert second["seconds of these cells at most, about"] > 0
    code, out, _ = call(*words)
    assert (
        "figure_1: nothing is left to measure" in out
        and "figure_2: " in out
        and " cells, about" in out
    )
    assert not list(tmp_path.iterdir())


def test_a_forecast_of_a_study_knows_what_the_file_of_facts_has(call, tmp_path, nothing_runs):
    words = ("study", "jumprelu", "--quick", "--only", "figure_2", "--store", "s.sqlite")
    words += ("--facts", "facts.json", "--dry-run")
    assert call(*words)[1].startswith("figure_2: 1 other measurements")
    said = {"sites": 4, "parameters": 1, "same_at_0": True, "other_at_kappa": True}
    with Store(":memory:") as there:
        keys = set()
        while lacks := plan("jumprelu", there, only=["figure_2"], quick=True)[0].lacks:
            for what in lacks:
                there.put_facts(locked_key(what), show(what), said, 1.0)
                keys.add(locked_key(what))
        Path("facts.json").write_text(as_json(there, keys))
    assert len(keys) > 3 and call(*words)[1].startswith("figure_2: nothing is left to measure")
    assert not Path("s.sqlite").exists()


def test_words_for_times_and_bytes():
    from retroact.cli.console import about_bytes, about_seconds

    said = [about_seconds(s) for s in (0.2, 7.4, 119, 121, 3 * 3600, 9e5)]
    assert said == [
        "about a second",
        "about 7 s",
        "about 119 s",
        "about 2 min",
        "about 3 h",
        "about 10 days",
    ]
    assert [about_bytes(b) for b in (5e4, 3e6, 2.34e9)] == ["1 MB", "3 MB", "2.3 GB"]


def test_a_budget_says_how_many_steps_it_holds(call, nothing_runs, monkeypatch):
    for room in ("budget", "forecast"):
        trial = Trial(seconds=1e-3, bytes=8.0)
        monkeypatch.setattr(f"retroact.training.{room}.try_gradient", lambda *_, t=trial: t)
    code, out, err = call(*HARDEN, "--budget", "20s", "--dry-run", "--json")
    told = json.loads(out)
    # 60 images, 9 passes: 37 steps; of 30 images 74
    assert code == 0 and (told["steps"], told["examples a step"]) == (70, 30), err
    assert told["seconds, about"] == 18.9
    code, _, err = call(*HARDEN, "--budget", "20s", "--steps", "5")
    assert code == 2 and "expected --budget or --steps, got both" in err
    code, _, err = call(*HARDEN, "--budget", "soon")
    assert code == 2 and "expected a budget such as 90s" in err
    for flag in (("--quick",), ("--html", "page.html")):
        code, _, err = call(*HARDEN, *flag)
        assert code == 2 and f"{flag[0]} is said of --audit" in err


def test_the_outcome_is_audited_as_the_last_step(call, tmp_path, brief):
    words = ("--learn", "early", "--steps", "3", "--attack-steps", "1", "--pull", "0.5")
    last = ("--audit", "digits[:40]", "--quick", "--html", "page.html", "--out", "h.safetensors")
    code, out, err = call(*HARDEN, *words, *last, "--json")
    told = json.loads(out)
    assert code == 0 and told["audit"]["n"] == 40 and told["saved"] == "h.safetensors", err
    assert "pull=0.5" in told["recipe"] and told["learned"] == 266
    page = (tmp_path / "page.html").read_text()
    assert "Claimed and verified" in page and "266 of 38,282 numbers were learned" in page
    assert "pull=0.5" in page and "held out" not in page  # there was no curve
    with safe_open(tmp_path / "h.safetensors", framework="pt") as file:
        card = json.loads(file.metadata()["retroact"])["model-index"]
    told_of = {r["metrics"][0]["name"]: r["metrics"][0]["value"] for r in card[0]["results"]}
    own = {name: v for name, v in told_of.items() if "before the change" not in name}
    verified = next(v for name, v in own.items() if name.startswith("verified accuracy"))
    claimed = next(v for name, v in own.items() if name.startswith("accuracy under PGD"))
    assert (claimed, verified) == (told["audit"]["claimed"], told["audit"]["verified"])
    assert any(name.startswith("verified") and "before" in name for name in told_of)
