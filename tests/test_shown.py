"""Results in a notebook: short prints, and a small table that says the verdict."""

from functools import cache

import numpy as np

import retroact as ra
from retroact.evaluation.record import Record
from retroact.experiments.tuning import Point, Tuning
from retroact.shown import as_html


@cache
def made():
    net = ra.load("digits-cnn")
    return ra.audit(net, ra.JumpReLU(0.5), "digits[:30]", ra.Linf(0.1), battery="quick")


def test_all_text_is_escaped():
    page = as_html("a < b & c", ("<x>",), [("1 > 0",)], ("<script>",))
    assert "a &lt; b &amp; c" in page and "<th>&lt;x&gt;</th>" in page and "<script>" not in page


def test_a_cell_that_ends_in_an_audit_prints_its_verdict():
    audit = made()
    assert len(repr(audit)) < 600 and str(audit.verdict) in repr(audit)
    assert len(repr(audit.numbers())) < 600
    page = audit._repr_html_()
    assert len(page) < 3000 and page.count("<tr>") == 3
    before, after = (f"{100 * v:.1f}" for v in audit.verdict.counts.verified)
    assert f"<td>{before}</td>" in page and f"<td>{after}</td>" in page
    assert all(reading.title in page for reading in audit.alarms)


def test_a_verdict_by_itself_has_the_same_table():
    verdict = made().verdict
    page = verdict._repr_html_()
    assert str(verdict).split(";")[0] in page and page.count("<tr>") == 3
    assert f"<th>n = {verdict.counts.n}</th>" in page and "<td>after</td>" in page


def test_a_record_says_how_many_stay_right_and_what_is_doubtful():
    steep = ra.retrofit("digits-cnn", ra.SReLU(100.0))
    record = ra.evaluate(steep, "digits[:20]", "PGD(steps=10)", ra.Linf(0.1))
    page, k = record._repr_html_(), int(record.robust.sum())
    assert f"{k} of 20 examples stay right under PGD(steps=10)" in page
    low, high = (f"{100 * v:.1f}" for v in ra.wilson(k, 20))
    assert f"<td>{5 * k:.1f} [{low}, {high}]</td>" in page and "digits-cnn + SReLU" in page
    assert "<li>100% of its gradients were exactly zero</li>" in page


def test_a_record_of_nothing_is_shown_too():
    none = np.zeros(0, np.int64)
    facts = dict.fromkeys(("index", "label", "target", "clean", "adversarial"), none)
    counts = dict.fromkeys(("queries", "gradients", "zero_gradients"), none)
    sizes = dict.fromkeys(("distance", "size"), np.zeros((0, 4), np.float32))
    record = Record(**facts, **counts, **sizes, nonfinite=np.zeros(0, np.bool_))
    assert "0 of 0 examples" in record._repr_html_()


def test_a_tuning_curve_marks_what_is_best_by_its_own_attacks_and_the_papers_rule():
    points = tuple(
        Point(ra.JumpReLU(k), k, 1.0, claimed, verified)
        for k, claimed, verified in ((0.0, 0.6, 0.6), (0.5, 0.7, 0.65), (1.0, 0.8, 0.5))
    )
    curve = Tuning(points, "kappa", 0.99, "digits/validation", "Linf(eps=0.1)", 40)
    page = curve._repr_html_()
    assert "<td>65.0</td><td>best by these</td>" in page
    assert "<th>under tuning&#x27;s attacks %</th>" in page, "its numbers are no audit's"
    assert "verified" not in page + str(curve) and "recommend" not in page + str(curve)
    assert "<td>50.0</td><td>the papers&#x27; rule</td>" in page and len(repr(curve)) < 400


def test_a_retrofit_says_what_stands_where():
    chosen = ra.retrofit("digits-cnn", ra.JumpReLU(0.5), sites=[0]).retrofit
    page = chosen._repr_html_()
    assert "<td>JumpReLU(kappa=0.5)</td><td>0:1</td><td>relu</td><td>none</td>" in page


def test_a_check_says_the_interval():
    check = ra.check("digits-cnn", "digits[:30]", ra.Linf(0.1), reported=99.0, battery="quick")
    assert len(repr(check)) < 600
    assert check.statement == "TOO HIGH" and "99.0" in check._repr_html_()


def test_what_was_hardened_says_its_trade_off():
    train, held = ra.data("digits/train[:200]"), ra.data("digits/validation[:50]")
    how = ra.Hardening(steps=3, batch=20)
    hard = ra.harden("digits-cnn", train, ra.Linf(0.1), how, keep=0.5, held=held)
    assert len(repr(hard)) < 300 and hard._repr_html_().count("<tr>") == 1 + len(hard.curve)
