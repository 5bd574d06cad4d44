"""What an audit tells others: JSON by the package's schema, a paragraph, a data frame."""

import json
from dataclasses import replace
from importlib import resources

import jsonschema
import pytest

import retroact as ra
from retroact.auditing.battery import Battery
from retroact.auditing.numbers import SCHEMA, AuditNumbers, Entries, Pair
from retroact.auditing.paragraph import write_paragraph
from retroact.reports.audited import as_json
from retroact.spec import show

LITTLE = Battery(1, 1, 1, 1, trial_steps=0, sample=4, queries=0, points=20)
SAID = json.loads((resources.files("retroact.auditing") / "schema.json").read_text("utf-8"))


def errors(written: object) -> list[str]:
    jsonschema.Draft202012Validator.check_schema(SAID)
    return [e.message for e in jsonschema.Draft202012Validator(SAID).iter_errors(written)]


@pytest.fixture(scope="module")
def audit():
    return ra.audit("digits-cnn", "JumpReLU(1.0)", "digits[:60]", "Linf(0.1)", battery=LITTLE)


def test_an_audit_writes_what_the_schema_says(audit):
    written = json.loads(as_json(audit))
    assert not errors(written) and written["schema"] == SCHEMA
    assert written["mechanisms"] == [*audit.verdict.mechanisms]
    assert written["words"] == [*audit.verdict.words]
    lists = [a["asked_by"] for a in written["attacks"]["network"] if "asked_by" in a]
    assert all(isinstance(titles, list) for titles in lists)
    assert AuditNumbers.from_json(written).to_json() == written


def test_the_schema_finds_what_is_not_so(audit):
    written = json.loads(as_json(audit))
    for wrong in (
        {"verified": 71.2},
        {"effect": "GOOD"},
        {"words": "MASKED"},
        {"schema": 2},
        {"more": 1},
    ):
        assert errors(written | wrong), wrong
    for name in ("retroact", "fingerprints", "n", "pedigree"):
        assert errors({k: v for k, v in written.items() if k != name}), name


def test_rare_fields_are_described_too(audit):
    numbers = audit.numbers()
    assert numbers.attacks is not None and numbers.pedigree is not None
    one = replace(numbers.attacks.after[0], kernel="h = 1", asked_by="a, b", nonfinite=2)
    run = replace(
        numbers.pedigree, draws=(0, 10), single=(None, (0.5, 0.1)), baseline="ab", budget="60"
    )
    reading = replace(numbers.indicators[0], absolute=True, fired_before=True)
    assert numbers.curves is not None
    mapped = replace(numbers.curves.after, entries=Entries((1, 8, 8), (1, 2), (40,)))
    rare = replace(
        numbers,
        attacks=type(numbers.attacks)((one,), (one,)),
        pedigree=run,
        indicators=(reading,),
        planted="40 of 40",
        moved=type(numbers.attacks)(None, 0.01),
        curves=Pair(numbers.curves.before, mapped),
        also=numbers,
    )
    written = json.loads(json.dumps(rare.to_json()))
    assert not errors(written) and written["attacks"]["twin"][0]["asked_by"] == ["a", "b"]
    assert json.loads(json.dumps(AuditNumbers.from_json(written).to_json())) == written


def test_what_schema_2_wrote_is_read_and_stays_what_it_was(audit):
    written = json.loads(as_json(audit)) | {"schema": 2}
    for name in ("words", "mechanisms"):
        del written[name]
    for attack in written["attacks"]["network"]:
        attack["asked_by"] = "no gradient, equal logits"
    for attack in written["attacks"]["twin"]:
        attack.pop("asked_by", None)
    read = AuditNumbers.from_json(written)
    assert read.to_json() == written
    assert replace(read, schema=SCHEMA).to_json()["attacks"]["network"][0]["asked_by"] == [
        "no gradient",
        "equal logits",
    ]


def test_a_check_writes_what_the_schema_says(audit):
    from retroact.auditing.claims import Check

    # a check is an audit of one network against itself: its fields are this one's after side
    for reported in (None, 0.9):
        written = json.loads(json.dumps(Check(reported, audit).to_json()))
        assert not errors(written) and written["schema"] == SCHEMA
    assert errors(written | {"alarms": "none"}) and errors(written | {"reported": 90})


# -------------------------------------------------------------------------------------- a paragraph


def test_the_paragraph_has_what_a_reviewer_asks_for(audit):
    said, counts, prints = audit.paragraph(), audit.verdict.counts, audit.fingerprints
    shares = [f"{100 * v:.1f} %" for v in (*counts.clean, *counts.claimed, *counts.verified)]
    bounds = [
        f"{100 * v:.1f}"
        for side in (0, 1)
        for v in ra.wilson(round(counts.verified[side] * counts.n), counts.n)
    ]
    for needed in (
        *audit.names, "n = 60 images", "digits[:60]", "Linf(eps=0.1)", show(LITTLE), "seed 0",
        f"retroact {ra.__version__}", "torch", f"p = {counts.p:.2g}", audit.verdict.effect,
        "upper bound", *shares, *bounds, *(f"{100 * v:+.1f}" for v in counts.interval),
        f"{counts.gained} images gained, {counts.lost} lost", audit.claimed_attack,
        prints.data, *prints.weights, *audit.verdict.words, *audit.verdict.doubts,
    ):  # fmt: skip
        assert needed in said, needed


def test_one_paragraph_is_pinned():
    """Read as it would be printed; from numbers alone, as `--json` keeps them."""
    numbers = AuditNumbers(
        n=300, effect="HARMFUL", claim="MASKED, WEAK PROTOCOL", mechanism="jump",
        clean=Pair(1.0, 1.0), claimed=Pair(0.643, 0.82), verified=Pair(0.51, 0.25), p=3.6e-17,
        names=Pair("lenet-mnist", "lenet-mnist + JumpReLU(kappa=1.0)"), data="mnist[:300]",
        threat="Linf(eps=0.1)", gained=5, lost=83, interval=(-0.315, -0.202),
        claimed_attack="PGD(steps=40)", battery="Battery()", retroact="0.2.0", battery_version=3,
    )  # fmt: skip
    assert write_paragraph(numbers) == (
        "We compared lenet-mnist + JumpReLU(kappa=1.0) with lenet-mnist on n = 300 images,"
        " mnist[:300], within Linf(eps=0.1). Both were attacked by the battery Battery() of"
        " retroact 0.2.0 (battery version 3). Clean accuracy is 100.0 % before the change and"
        " 100.0 % after it; the accuracy that would be claimed, under PGD(steps=40), is 64.3 % and"
        " 82.0 %. Verified accuracy, the worst case over all these attacks image by image and so"
        " an upper bound, is 51.0 % [45.4, 56.6] before and 25.0 % [20.4, 30.2] after (95 % Wilson"
        " intervals), a difference of -26.0 points with a 95 % bootstrap interval of -31.5 to"
        " -20.2 (5 images gained, 83 lost, McNemar's exact p = 3.6e-17). The effect of the change"
        " is HARMFUL, and its claim is MASKED by jump, WEAK PROTOCOL."
    )


# ------------------------------------------------------------------------------------ a data frame


def test_the_frame_has_a_row_for_each_image(audit):
    frame, counts = audit.frame(), audit.verdict.counts
    assert len(frame) == 60 and [*frame["index"]] == ra.data("digits[:60]").index.tolist()
    for what in ("clean", "claimed", "verified"):
        shares = tuple(frame[f"{what}_{side}"].mean() for side in ("before", "after"))
        assert shares == pytest.approx(getattr(counts, what))
    fell = frame[frame["clean_after"] & ~frame["verified_after"]]
    assert (fell["decided_after"] != fell["label"]).all() and fell["broken_by_after"].notna().all()
    assert frame["broken_by_after"].notna().sum() == len(fell) > 0


def test_the_frame_is_written_by_the_files_suffix(audit, tmp_path):
    import pandas as pd

    frame = audit.frame()
    for name, read in (("a.csv", pd.read_csv), ("a.parquet", pd.read_parquet)):
        found = read(ra.report(audit, tmp_path / name))
        assert [*found.columns] == [*frame.columns]
        assert [*found["verified_after"]] == [*frame["verified_after"]]
        assert found["decided_after"].isna().sum() == frame["decided_after"].isna().sum()
