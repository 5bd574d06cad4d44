"""The ledger: its statistics, how knobs are chosen, its docket, what is done to networks, and a run
from end to end."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from retroact.activations.curvature import CurvatureTuning
from retroact.activations.files import keep
from retroact.activations.kwta import KWTA
from retroact.activations.mean_sparse import MeanSparse
from retroact.activations.piecewise import BoundedReLU, JumpReLU
from retroact.attacks.fgsm import FGSM
from retroact.auditing.verdict import bootstrap, holm
from retroact.changing.int8 import Int8
from retroact.checkpoint import digest, load
from retroact.crafting.threat import Linf
from retroact.evaluation.evaluate import decide
from retroact.experiments.store import Store
from retroact.nets.data import data
from retroact.reports import studied
from retroact.retrofitting.installed import installed
from retroact.retrofitting.surgery import retrofit
from retroact.studies import study as studies
from retroact.studies.desk import Desk
from retroact.studies.ledger import lines, measurements, networks, question_mean_sparse, table_1
from retroact.studies.ledger.curved import ChannelCurvature, LearnedCurvature
from retroact.studies.ledger.judged import Look, judge_all, leaves_open, what_became
from retroact.studies.ledger.lines import Choice, Ledger, Line, choose, judge, plan
from retroact.studies.ledger.measurements import pack, unpack
from retroact.studies.ledger.networks import NETS, Net, Slices, choose_radius
from retroact.studies.ledger.power import images_for, interval, shares_of, visible_gain
from retroact.studies.ledger.question_mean_sparse import describe, with_identity
from retroact.studies.ledger.rows import (
    VERIFIED,
    AsPublished,
    BestClaimed,
    Point,
    Published,
    Row,
    Strongest,
    choose_verified,
    docket,
)
from retroact.studies.ledger.shown import ledger_table, summarise
from retroact.studies.ledger.treatments import (
    Changed,
    Given,
    Hardened,
    LinearFromEnd,
    LoweredKWTA,
    OnTop,
    Swapped,
    calibrated,
)
from retroact.studies.published import published
from retroact.training.hardening import Hardening

ROWS = [row for _, row in docket()]


# --------------------------------------------------------------------------------------- statistics


def test_the_images_that_a_gain_takes_are_those_of_the_protocol():
    """1,230 to 3,070 for a gain of 1.6 points where 4 to 10 % of images change hands."""
    assert [10 * -(-images_for(0.016, moved) // 10) for moved in (0.04, 0.1)] == [1230, 3070]


@pytest.mark.parametrize("moved", [0.02, 0.1, 0.4])
def test_the_gain_that_so_many_images_show_is_the_one_that_takes_so_many(moved):
    gain = visible_gain(500, moved)
    assert images_for(gain, moved) in (500, 501) and images_for(0.9 * gain, moved) > 500


def test_where_next_to_nothing_moves_no_gain_can_be_seen():
    assert visible_gain(200, 0.0) is None and visible_gain(200, 0.005) is None
    with pytest.raises(ValueError, match="within the share of images that change hands"):
        images_for(0.2, 0.1)


@pytest.mark.parametrize(("gained", "lost", "n"), [(20, 5, 200), (0, 0, 200), (30, 60, 817)])
def test_the_interval_is_the_bootstraps_and_grows_as_the_rate_falls(gained, lost, n):
    ends = interval(gained, lost, n)
    assert ends == pytest.approx(bootstrap(gained, lost, n), abs=0.006)
    wide = interval(gained, lost, n, 0.0005)
    assert wide[0] < ends[0] < (gained - lost) / n + 1e-2 and wide[1] > ends[1]


def test_what_holms_order_gives_agrees_with_holms_p():
    ps = [0.02, 0.0001, 0.6, 0.004, 0.03]
    by_share = [p <= share for p, share in zip(ps, shares_of(0.05, ps), strict=True)]
    by_p = [p <= 0.05 for p in holm(ps)]
    assert by_p == [False, True, False, True, False]
    assert [b for p, b in sorted(zip(ps, by_share, strict=True))][:3] == [True, True, False]


def verdicts(*looks, planned=None):
    return [j and j.verdict for j in judge_all(looks, planned or len(looks))]


def test_a_verdict_follows_from_the_corrected_interval():
    gained, lost = Look(200, 30, 2), Look(200, 2, 30)
    assert verdicts(gained, lost, Look(1000, 1, 1, second=True)) == [
        "GENUINE",
        "HARMFUL",
        "NO EFFECT",
    ]
    assert verdicts(Look(200, 8, 9), None) == ["CANNOT BE TOLD", None]


def test_a_doubt_or_autoattack_takes_a_gain_back_and_no_harm():
    gained, lost = Look(200, 30, 2), Look(200, 2, 30)
    assert verdicts(replace(gained, doubted=True)) == ["CANNOT BE TOLD"]
    assert verdicts(replace(gained, auto=-0.01)) == ["CANNOT BE TOLD"]
    assert verdicts(replace(gained, auto=0.0)) == ["GENUINE"]
    assert verdicts(replace(lost, doubted=True, auto=-0.5)) == ["HARMFUL"]
    assert verdicts(replace(lost, settled=False)) == ["CANNOT BE TOLD"]


def test_lines_that_are_planned_count_before_they_are_measured():
    weak = Look(200, 12, 1)
    assert verdicts(weak) == ["GENUINE"] and verdicts(weak, planned=100) == ["CANNOT BE TOLD"]


def test_looks_are_corrected_apart():
    several = [Look(200, 30, 2), Look(1000, 30, 2, second=True)]
    first, second = judge_all(several, 2)
    assert first.p == second.p == 2 * several[0].p


def test_no_effect_within_five_points_waits_for_the_last_look():
    look = Look(817, 30, 30, claimed=0.005)
    (first,), (last,) = judge_all([look], 1), judge_all([replace(look, second=True)], 1)
    assert first.open and first.verdict == "CANNOT BE TOLD"
    assert not last.open and last.verdict == "NO EFFECT"


def test_a_second_look_is_due_where_0_and_the_claim_are_both_open():
    assert leaves_open((-0.02, 0.06), 0.016) and not leaves_open((-0.02, 0.06), 0.1)
    assert not leaves_open((0.01, 0.06), 0.016)
    assert leaves_open((-0.06, 0.01), None) and not leaves_open((-0.04, 0.04), None)


@pytest.mark.parametrize(
    ("claimed", "ends", "said"),
    [
        (0.2, (-0.05, 0.04), "too high by at least 16.0"),
        (0.02, (0.01, 0.04), "stands"),
        (0.02, (-0.01, 0.04), "cannot be told"),
        (0.02, (0.03, 0.04), "stands, and more"),
        (None, (0.0, 0.1), "no number is claimed"),
    ],
)
def test_what_becomes_of_a_claim(claimed, ends, said):
    assert what_became(Look(200, 1, 1, claimed=claimed), ends) == said
    outside = what_became(Look(200, 1, 1, claimed=claimed, outside=True), ends)
    assert outside == (
        "outside the claim" if claimed is None else f"outside the claim; here {said}"
    )


# -------------------------------------------------------------------------------------------- knobs


def points(*triples):
    return [Point(0.9, *triple) for triple in triples]


def test_the_radius_is_the_one_where_four_tenths_are_left():
    assert choose_radius((0.05, 0.1, 0.2), (0.9, 0.55, 0.2)) == Linf(0.1)
    assert choose_radius((0.05, 0.1), (0.5, 0.3)) == Linf(0.05)


def test_each_rule_takes_its_value():
    tried = points((0.9, 0.3, 0.3), (0.89, 0.5, 0.2), (0.7, 0.8, None))
    assert Strongest("")(tried) == [1] and Strongest("", cost=0.0)(tried) == [0]
    assert BestClaimed("")(tried) == [2] and AsPublished((0, 2))(tried) == [0, 2]
    assert choose_verified(tried) == 0
    assert Strongest("")(points((0.5, 0.1), (0.4, 0.1))) == [0]


def test_of_values_that_verify_alike_the_one_nearest_to_the_network_is_chosen():
    assert choose_verified(points((0.9, 0.3, 0.3), (0.9, 0.3, 0.3), (0.9, 0.1, 0.2))) == 0
    assert choose_verified(points((0.5, 0.3, None))) is None


def test_two_rules_with_one_value_give_one_line_and_two_values_two():
    row = next(r for r in ROWS if r.name == "bounded_relu")
    tried = points(*[(0.9, 0.3, 0.1 * i) for i in range(5)])
    (both,) = choose(row, NETS[0], tried)
    assert both.by == (row.rule.words, VERIFIED) and both.what == row.values[4]
    first, second = choose(row, NETS[0], [replace(tried[0], verified=0.9), *tried[1:]])
    assert (first.what, first.by) == (row.values[0], (VERIFIED,)) and second.what == row.values[4]
    assert choose(row, NETS[0], tried[:4]) == []  # not all of them are measured


def test_where_no_value_is_affordable_the_line_says_so():
    row = next(r for r in ROWS if r.name == "bounded_relu")
    (only,) = choose(row, NETS[0], points(*[(0.5, 0.3)] * 5))
    assert only.what == row.values[0] and "no value keeps" in only.note


# ------------------------------------------------------------------------------------------- docket


def test_the_docket_has_the_rows_of_the_protocol():
    protocol = Path(__file__).parents[2] / "docs" / "ledger" / "protocol.md"
    text = protocol.read_text("utf-8")
    assert len(ROWS) == 20 and all(f"\n| {i} |" in text for i in range(1, 21))
    assert [row.name for row in ROWS if row.everywhere] == [
        "jumprelu",
        "mean_sparse",
        "curvature_tuning",
        "hardening",
        "int8",
    ]
    assert [row.name for row in ROWS if row.control] == ["kwta"]
    assert max(len(row.values) for row in ROWS) <= 6


def test_every_row_is_published_and_every_published_row_is_there():
    assert {row.name for row in ROWS} == set(published("ledger", "rows"))
    for row in ROWS:
        assert row.said.source and row.said.said, row.name
        assert not row.said.outside or (row.said.ours and row.said.settle), row.name


def test_lines_are_planned_for_every_rule():
    row = next(r for r in ROWS if r.name == "srelu")
    assert row.most == 3 and plan([row]) == 12  # four networks
    assert plan(r for r in ROWS if r.name == "lwta") == 2  # MNIST alone


def test_a_claimed_gain_is_no_more_than_there_is_to_gain():
    relative = Published("", "", gain=10.0, unit="times")
    assert relative.expect("x", 0.02, 0.9) == pytest.approx(0.2)
    assert relative.expect("x", 0.4, 0.9) == pytest.approx(0.5)
    here = Published("", "", gain=20.0, gains={"a": 3.0})
    assert here.expect("a", 0.4, 0.9) == pytest.approx(0.03) and not here.is_outside("a")
    assert here.expect("b", 0.4, 0.9) == pytest.approx(0.2) and here.is_outside("b")


# --------------------------------------------------------------------------------- what is done


@pytest.fixture
def given(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    train, held = data("digits/train[:200]"), data("digits/validation[:50]")
    return Given(train, train, held, Linf(0.1))


NET = "digits-cnn"


def test_bits_come_back():
    bits = torch.arange(21).numpy() % 3 == 0
    assert (unpack(pack(bits), 21) == bits).all()


def test_the_last_sites_become_linear(given):
    net = load(NET)
    count = len(installed(retrofit(net, JumpReLU())))
    made = LinearFromEnd(0.5)(net, given)
    assert len(installed(made)) == -(-count // 2) < count


def test_winners_grow_fewer_step_by_step_and_training_happens_once(given, monkeypatch):
    what = LoweredKWTA(0.2, steps=2)
    assert what.shares == pytest.approx([0.2**0.5, 0.2])
    net = load(NET)
    made = what(net, given)
    assert made.retrofit.activation == KWTA(0.2) and digest(made) != digest(
        retrofit(net, KWTA(0.2))
    )
    monkeypatch.setattr(LoweredKWTA, "_train", lambda *a: pytest.fail("trained twice"))
    assert digest(what(net, given)) == digest(made)


def test_on_top_is_beside_what_it_stands_on(given):
    recipe = Hardening(steps=2, batch=20)
    what = OnTop(Hardened(recipe, keep=0.0), CurvatureTuning(0.8))
    net = load(NET)
    before, after = what.before(net, given), what(net, given)
    x = given.held.images
    assert not torch.equal(before(x), net(x)) and not torch.equal(before(x), after(x))


def test_one_beta_for_every_channel_is_one_beta(given):
    net, x = load(NET), given.held.images
    one = retrofit(net, CurvatureTuning(0.8))
    betas = {name: torch.full((w,), 0.8) for name, w in _widths(one, x).items()}
    many = retrofit(net, ChannelCurvature(*keep(betas, None)))
    torch.testing.assert_close(many(x), one(x))


def _widths(net, x):
    seen = {}
    for name, module in installed(net).items():
        module.register_forward_pre_hook(
            lambda m, args, name=name: seen.__setitem__(name, args[0].shape[1])
        )
    net(x[:1])
    return seen


@pytest.mark.parametrize("per", ["site", "channel"])
def test_betas_are_learned(per, given):
    made = LearnedCurvature(per, steps=3, batch=20)(load(NET), given)
    again = LearnedCurvature(per, steps=3, batch=20)(load(NET), given)
    assert digest(made) == digest(again)
    x = given.held.images
    start = retrofit(load(NET), CurvatureTuning(0.9))
    assert not torch.allclose(made(x), start(x)) and (decide(made, x) == given.held.labels).any()


def test_an_identity_backward_pass_computes_the_same_and_sees_no_jump(given):
    net, x = load(NET), given.held.images[:8]
    sparse = retrofit(net, calibrated(MeanSparse(0.3), net, given.train))
    straight = with_identity(sparse)
    assert torch.equal(straight(x), sparse(x))
    inner = next(iter(installed(straight).values())).activation
    middle = inner.inner.mean[None, :, None, None].expand(1, -1, 2, 2).clone().requires_grad_()
    inner(middle).sum().backward()
    shown = middle.grad[0, :, 0, 0]
    assert torch.equal(shown, (inner.inner.mean > 0).float())  # autograd's own is 0 there


def test_whether_the_identity_is_enough_is_counted():
    ways = dict.fromkeys(question_mean_sparse.WAYS, 40.0)
    said = describe([ways | {"kernels": 33.0, "all": 32.0}, ways | {"all": 39.5}])
    assert "up to 8.0 points more" in said and "on 1 of 2 networks" in said and "kernels 2" in said


# -------------------------------------------------------------------------------------------- shown


def facts_of(before, after, **more):
    """Facts of an audit of which these images (bools) are robust before and after."""
    a, b = (torch.tensor(side).numpy() for side in (before, after))
    shares = [float(a.mean()), float(b.mean())]
    counts = {"gained": int((b & ~a).sum()), "lost": int((a & ~b).sum())}
    words = {"effect": "GENUINE", "claim": "HONEST", "mechanism": "", "doubts": []}
    same = {"clean": [1.0, 1.0], "claimed": shares, "verified": shares, "n": len(a)}
    return counts | words | same | {"robust": [pack(a), pack(b)]} | more


def test_every_line_says_how_far_it_is():
    (name, row), net = docket()[3], NETS[0]
    start = Line(row, net, Linf(0.1))
    chosen = replace(start, choice=Choice(row.values[0], ("as published",)))
    genuine = facts_of([True] * 40 + [False] * 60, [True] * 90 + [False] * 10)
    refused = {"n": 100, "refused": "it decides at chance"}
    several = (
        start,
        replace(chosen, first=refused),
        replace(chosen, first=genuine, repeats=(genuine, facts_of([True], [True], effect="x"))),
    )
    ledger = judge(Ledger(several, 3))
    assert not ledger.complete
    rows = ledger_table(ledger, [(name, row)]).texts()
    assert [line[3] for line in rows] == ["not chosen yet", *[row.values[0].knob] * 2]
    assert rows[0][4] == "not measured yet" and "at chance" in rows[1][4]
    assert rows[2][4].startswith("GENUINE · HONEST; holds in 1 of 2")
    assert rows[2][8:10] == ["40.0 → 90.0", rows[2][9]] and rows[2][9].startswith("+50.0 (+")
    said = [takeaway.text for takeaway in summarise(ledger)]
    assert said[0] == "1 lines are judged: 1 GENUINE; 1 more are not measured yet."
    assert not any("GENUINE, from every seed" in line for line in said)  # one of two fell


def test_a_control_that_comes_out_genuine_says_that_the_page_is_wrong():
    row = next(r for r in ROWS if r.control)
    genuine = facts_of([False] * 100, [True] * 100)
    line = Line(row, NETS[2], Linf(0.1), Choice(row.values[0]), genuine)
    said = " ".join(t.text for t in summarise(judge(Ledger((line,), 1))))
    assert "GENUINE on 1 of 1 lines, so this page is wrong" in said


# ---------------------------------------------------------------------------------- from end to end


SMALL = Slices(
    "mnist/validation[:12]",
    "mnist/train[:100]",
    "mnist/train[:100]",
    ("mnist[2000:2012]", "mnist[2000:2014]"),
    "mnist[2000:2002]",
)
CAPS = tuple(Swapped(BoundedReLU(cap)) for cap in (8.0, 0.01))
CHEAP = [
    ("entry_3_bounded_relu", Row("bounded_relu", "Capped", CAPS, Strongest("the smallest"))),
    ("entry_17_int8", Row("int8", "Int8", (Changed(Int8()),))),
]


@pytest.mark.long
def test_a_quick_run_measures_every_line_prints_it_and_prints_the_same_from_the_store(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    net = Net("lenet-mnist", (0.1,), SMALL, SMALL)
    monkeypatch.setattr(networks, "NETS", (net,))
    monkeypatch.setattr(lines, "docket", lambda: CHEAP)
    monkeypatch.setattr(table_1, "docket", lambda: CHEAP)
    # the real one takes thousands of passes for every image that stands
    monkeypatch.setattr(measurements, "AutoAttack", FGSM)
    with Store(tmp_path / "s.sqlite") as store:
        before = studies.study("ledger", store, only=["table_1"], stored=True)
        assert "not measured yet" in studied.markdown(before, "x")[0]
        made = studies.study("ledger", store, only=["table_1"], quick=True)
        monkeypatch.setattr(
            "retroact.experiments.facts._Work.__call__",
            lambda work, what: pytest.fail(f"{what} is measured anew"),
        )
        again = studies.study("ledger", store, only=["table_1"], quick=True)
        stored = lines.make_ledger(Desk(store, quick=True, stored=True))
    text, figures = studied.markdown(made, "ledger")
    assert text == studied.markdown(again, "ledger")[0] and len(figures) == 1
    assert "not measured yet" not in text and "## Claims" not in text
    assert [line.row.name for line in stored.lines] == ["bounded_relu", "int8"]
    assert stored.lines[0].choice.what == CAPS[0]  # capped at .01 next to nothing is right
    assert all(line.audit["verified"][0] > 0 and line.auto for line in stored.lines)
    assert len({line.audit["verified"][0] for line in stored.lines}) == 1  # attacked once
    assert "| 17. Int8 | lenet-mnist | 0.1 | Int8() |" in text
