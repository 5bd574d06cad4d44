"""Metrics on records made by hand, against numbers worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retroact.evaluation import metrics
from retroact.evaluation.metrics import Metric, rho, wilson, worst_case
from retroact.evaluation.record import Record, RecordError, from_bytes, images_to_bytes, to_bytes


def record(clean, adversarial, label=None, target=None, **changed):
    n = len(clean)
    count = np.arange(n, dtype=np.int64)
    facts = {
        "index": count + 10,
        "label": np.zeros(n, np.int64) if label is None else np.array(label, np.int64),
        "target": np.full(n, -1, np.int64) if target is None else np.array(target, np.int64),
        "clean": np.array(clean, np.int64),
        "adversarial": np.array(adversarial, np.int64),
        "distance": np.tile(np.array([4, 2, 1, 0.5], np.float32), (n, 1)),
        "size": np.tile(np.array([16, 8, 4, 1], np.float32), (n, 1)),
        "queries": count + 1,
        "gradients": count,
        "zero_gradients": count // 2,
        "nonfinite": np.zeros(n, np.bool_),
    }
    return Record(**(facts | changed))


def test_accuracies_count_clean_errors_as_errors():
    r = record(clean=[0, 0, 0, 1], adversarial=[0, 1, 0, 0])
    assert metrics.clean_accuracy(r) == 0.75
    assert metrics.robust_accuracy(r) == 0.5  # the last is wrong clean: no attack can make it count
    assert metrics.success_rate(r) == pytest.approx(1 / 3)


def test_targeted_success_leaves_out_those_that_are_the_target_already():
    r = record(clean=[0, 3, 0, 2], adversarial=[3, 3, 1, 3], target=[3, 3, 3, 3])
    assert metrics.success_rate(r) == pytest.approx(2 / 3)


def test_success_of_nothing_is_not_a_number():
    assert math.isnan(metrics.success_rate(record(clean=[1], adversarial=[1])))


def test_no_decision_is_no_right_decision():
    assert metrics.clean_accuracy(record(clean=[-1, 0], adversarial=[-1, 0])) == 0.5


def test_rho_is_the_mean_relative_perturbation():
    r = record(clean=[0, 0], adversarial=[0, 1])
    assert rho(r, "l2") == 0.25 and rho(r, "linf") == 0.5 and rho(r, "l0") == 0.25
    black = dataclasses.replace(r, size=np.array([[0, 0, 0, 0], [16, 8, 4, 1]], np.float32))
    assert rho(black, "l2") == 0.125


def test_the_median_is_taken_over_the_beaten_alone():
    r = record(
        clean=[0, 0, 0, 1],
        adversarial=[1, 1, 0, 1],
        distance=np.array([[1] * 4, [3] * 4, [9] * 4, [9] * 4], "f"),
    )
    assert metrics.median_distance(r, "l2") == 2.0
    assert math.isnan(metrics.median_distance(record(clean=[0], adversarial=[0])))


def test_shares_of_passes():
    r = record(clean=[0] * 5, adversarial=[0] * 5)
    assert metrics.zero_gradient_share(r) == 4 / 10
    assert metrics.mean_queries(r) == 3 and metrics.mean_gradients(r) == 2


def test_worst_case_is_taken_example_by_example():
    a = record(clean=[0, 0, 0], adversarial=[0, 1, 0])
    b = record(clean=[0, 0, 0], adversarial=[0, 0, 1])
    assert worst_case([a, b]).tolist() == [True, False, False]
    shifted = dataclasses.replace(b, index=b.index + 1)
    with pytest.raises(ValueError, match="records of the same examples"):
        worst_case([a, shifted])
    with pytest.raises(ValueError, match="at least one record"):
        worst_case([])


def test_wilson_known_values():
    # Newcombe 1998, Table I: 81/263 and 0/20
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    with pytest.raises(ValueError, match="0 ≤ k ≤ n"):
        wilson(3, 2)


@given(st.integers(1, 5000), st.data())
def test_wilson_holds_its_share_and_stays_in_bounds(n, data):
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert -1e-15 <= low <= k / n <= high <= 1 + 1e-15


@given(
    st.lists(
        st.tuples(st.integers(-1, 3), st.integers(-1, 3), st.integers(0, 3)),
        min_size=1,
        max_size=30,
    )
)
def test_every_metric_keeps_its_bounds(rows):
    clean, adversarial, label = zip(*rows, strict=True)
    r = record(clean, adversarial, label)
    found = [m for m in vars(metrics).values() if isinstance(m, Metric)]
    assert len(found) >= 7
    for m in found:
        value = m(r)
        assert math.isnan(value) or m.low <= value <= m.high, m.title
    assert metrics.robust_accuracy(r) <= metrics.clean_accuracy(r)


def test_a_record_survives_its_bytes():
    r = record(clean=[0, 1], adversarial=[1, 1], pedigree={"seed": 3, "attack": "PGD(steps=40)"})
    images = np.random.default_rng(0).random((2, 1, 4, 4)).astype(np.float32)
    kept = dataclasses.replace(r, examples=images, originals=images / 3)
    again = from_bytes(to_bytes(kept), images_to_bytes(kept))
    assert again == r and again.pedigree == r.pedigree
    assert again.examples.tobytes() == images.tobytes()  # losslessly
    assert from_bytes(to_bytes(kept)).examples is None


def test_the_same_record_is_the_same_bytes():
    made = [
        to_bytes(record([0, 1], [1, 1], pedigree={"seed": 3, "attack": "PGD"})) for _ in range(20)
    ]
    assert len(set(made)) == 1


def test_equality_is_bit_for_bit_and_leaves_the_pedigree_out():
    r = record(clean=[0, 1], adversarial=[1, 1], pedigree={"seconds": 1})
    assert r == dataclasses.replace(r, pedigree={"seconds": 2})
    nudged = r.distance.copy()
    nudged[0, 2] = np.nextafter(nudged[0, 2], 2, dtype=np.float32)
    assert r != dataclasses.replace(r, distance=nudged)


@pytest.mark.parametrize(
    "junk", [b"", b"junk", to_bytes(record([0], [0]))[:60]], ids=["none", "junk", "cut"]
)
def test_foreign_bytes_are_refused(junk):
    with pytest.raises(RecordError, match="expected the bytes of a record"):
        from_bytes(junk)


def test_facts_of_different_lengths_are_refused():
    with pytest.raises(RecordError, match="expected 2 facts in queries, got 1"):
        record(clean=[0, 1], adversarial=[1, 1], queries=np.zeros(1, np.int64))
