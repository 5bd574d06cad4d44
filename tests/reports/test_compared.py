"""Audits side by side: every number is an audit's, and what does not compare is said."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest

from retroact.auditing.numbers import AuditNumbers, Pair
from retroact.reports import compared
from retroact.reports.report import report

JUMP = AuditNumbers(
    n=80,
    effect="HARMFUL",
    claim="MASKED",
    mechanism="jump",
    clean=Pair(1.0, 0.95),
    claimed=Pair(0.5, 0.8),
    verified=Pair(0.5, 0.25),
    p=0.001,
    names=Pair("net", "net + JumpReLU(<1.0>)"),
    data="d[:80]",
    threat="Linf(eps=0.1)",
    plainly="The change makes this network easier to fool.",
    interval=(-0.35, -0.15),
    doubts=("a doubt",),
    battery="Battery(steps=30)",
)
NONE = replace(
    JUMP,
    effect="NO EFFECT",
    claim="HONEST",
    mechanism="",
    claimed=Pair(0.5, 0.5),
    verified=Pair(0.5, 0.5),
    names=Pair("net", "other"),
    interval=(-0.02, 0.02),
    doubts=(),
)


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{name}.json" for name in ("one", "two")]
    for path, numbers in zip(paths, (JUMP, NONE), strict=True):
        path.write_text(json.dumps(numbers.to_json()))
    return paths


def test_the_sentence_counts_verdicts_and_names_the_claim_farthest_from_the_truth(files):
    rows = compared.rows_of(files, files[0].parent / "p.html")
    assert [r.change for r in rows] == ["JumpReLU(<1.0>)", "other"]
    assert compared.summary(rows) == (
        "Of 2 audits: 1 HARMFUL, 1 NO EFFECT; the claim is MASKED in 1. The claim that is farthest"
        " beyond the truth is that of JumpReLU(<1.0>), by 55.0 points."
    )
    assert compared.summary(rows[1:]).endswith("the claim is MASKED in 0.")


def test_the_page_has_a_row_for_each_and_links_their_own_pages(files, tmp_path):
    files[0].with_suffix(".html").write_text("its page")
    text = report(files, tmp_path / "ledger.html", title="A & B").read_text()
    assert "<h1>A &amp; B</h1>" in text and "JumpReLU(&lt;1.0&gt;)" in text
    assert len(re.findall(r'<tr id="audit-\d+">', text)) == 2
    assert text.count("its own page") == 1 and 'href="one.html"' in text
    assert "Doubt: a doubt." in text and "MASKED by jump" in text
    assert '"claimed points">+30.0</td>' in text and "<b>-25.0</b>" in text
    assert "-35.0 to -15.0" in text and '"beyond the truth">+55.0</td>' in text
    assert "net: claimed" not in text and "claimed +30.0, verified -25.0 points" in text
    assert text.index("Of 2 audits") < text.index("<svg") < text.index("<table")
    assert '<dt id="word-beyond-the-truth">' in text and "settings of network" not in text


def test_rows_that_do_not_compare_are_named(files):
    far = replace(JUMP, threat="Linf(eps=0.2)", battery="Battery(steps=10)")
    rows = [compared.Row(a) for a in (JUMP, NONE, far)]
    assert compared.unlike(rows[:2]) == ""
    assert "2 settings of network, data and threat" in compared.unlike(rows)
    assert "2 batteries" in compared.unlike(rows)
    drawn = ": net, Linf(eps=0.2)<"  # of a name in the figure
    assert drawn in compared.page(rows) and drawn not in compared.page(rows[:2])


def test_csv_markdown_and_json_hold_every_audit(files, tmp_path):
    rows = list(csv.DictReader(io.StringIO(report(files, tmp_path / "l.csv").read_text())))
    assert [r["effect"] for r in rows] == ["HARMFUL", "NO EFFECT"]
    assert (rows[0]["verified_before"], rows[0]["verified_difference"]) == ("0.5", "-0.25")
    text = report([JUMP, NONE], tmp_path / "l.md").read_text()
    assert "| 50.0 → 25.0 % | -25.0 (-35.0 to -15.0) |" in text and "JumpReLU(&lt;1.0>)" in text
    told = json.loads(report(files, tmp_path / "l.json").read_text())
    assert [AuditNumbers.from_json(t).effect for t in told] == [
        "HARMFUL",
        "NO EFFECT",
    ]
    assert compared.summary(compared.rows_of([JUMP], tmp_path)).startswith("Of 1 audit: 1 HARMFUL")
    with pytest.raises(ValueError, match="no audits to compare"):
        compared.page([])


def test_a_file_that_is_no_audit_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"n": 3}')
    with pytest.raises(ValueError, match=r"x\.json holds no audit"):
        report([tmp_path / "x.json"], tmp_path / "l.html")
