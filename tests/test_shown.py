"""Results in a notebook: short prints, and a small table that says the verdict."""

from functools import cache

import retroact as ra
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


def test_a_check_says_the_interval():
    check = ra.check("digits-cnn", "digits[:30]", ra.Linf(0.1), reported=99.0, battery="quick")
    assert len(repr(check)) < 600
    assert check.statement == "TOO HIGH" and "99.0" in check._repr_html_()


def test_what_was_hardened_says_its_trade_off():
    train, held = ra.data("digits/train[:200]"), ra.data("digits/validation[:50]")
    how = ra.Hardening(steps=3, batch=20)
    hard = ra.harden("digits-cnn", train, ra.Linf(0.1), how, keep=0.5, held=held)
    assert len(repr(hard)) < 300 and hard._repr_html_().count("<tr>") == 1 + len(hard.curve)
