"""The rules by which an audit is judged call a fake GENUINE what it is, and leave what is right."""

from types import SimpleNamespace

import numpy as np
import pytest

from retroact.auditing.mechanisms.judging import FLOOR, Said, find_faults, gains


def stands(before: float, after: float, n: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """So many of n, the first ones."""
    row = np.arange(n)
    return row < round(before * n), row < round(after * n)


def said(effect: str, claim: str = "MASKED", verified=(0.5, 0.5), claimed=(0.5, 0.5), doubts=0):
    return Said(effect, claim, doubts, claimed, stands(*verified))


NOTHING = stands(0.5, 0.5)


@pytest.mark.parametrize(
    ("of", "truth", "faults"),
    [
        (said("GENUINE", verified=(0.5, 0.9)), NOTHING, ["false GENUINE", "too high"]),
        (said("GENUINE", verified=(0.5, 0.52)), stands(0.5, 0.52), ["false GENUINE"]),
        (said("GENUINE", verified=(0.5, 0.7)), stands(0.5, 0.7), []),
        (said("ABSTAINED", verified=(0.5, 0.9), doubts=1), NOTHING, []),
        (said("INCONCLUSIVE", verified=(0.5, 0.56)), NOTHING, ["too high"]),
        (said("INCONCLUSIVE", verified=(0.56, 0.5)), NOTHING, ["too high"]),
        (said("NO EFFECT"), NOTHING, []),
        (said("NO EFFECT"), stands(0.5, 0.4), ["wrong effect", "too high"]),
        (said("HARMFUL", verified=(0.5, 0.3)), stands(0.5, 0.2), ["too high"]),
        (said("HARMFUL", verified=(0.5, 0.3)), stands(0.3, 0.3), ["wrong effect", "too high"]),
        (said("NO EFFECT", "HONEST", claimed=(0.5, 0.55)), NOTHING, []),
        (said("NO EFFECT", "HONEST", claimed=(0.5, 0.56)), NOTHING, ["false HONEST"]),
        (said("ABSTAINED", "HONEST", claimed=(0.9, 0.9), doubts=1), NOTHING, ["false HONEST"]),
        (said(FLOOR, verified=(0, 0)), stands(0.0, 0.0), []),
        (said(FLOOR, verified=(0, 0)), stands(0.3, 0.0), ["wrong effect"]),
    ],
)
def test_faults(of, truth, faults):
    assert find_faults(of, truth) == faults


def test_a_refusal_is_right_where_it_may_be_and_a_crash_never():
    refusal, crash = Said.instead(ValueError("no\nmore")), Said.instead(RuntimeError())
    assert refusal.error == "ValueError: no"
    assert find_faults(refusal, NOTHING) == ["refused"]
    assert find_faults(refusal, NOTHING, refusable=True) == []
    assert find_faults(crash, NOTHING, refusable=True) == ["crashed"]


def test_on_few_examples_two_of_them_are_no_fault():
    few = stands(0.5, 0.5, n=32)
    two, three = (stands(0.5, 0.5 + k / 32, n=32) for k in (2, 3))
    assert not find_faults(Said("INCONCLUSIVE", "MASKED", 0, (0.5, 0.5), two), few)
    assert find_faults(Said("INCONCLUSIVE", "MASKED", 0, (0.5, 0.5), three), few) == ["too high"]


def test_a_gain_must_lie_outside_the_interval():
    assert gains(stands(0.5, 0.6)) and not gains(stands(0.5, 0.52)) and not gains(stands(0.6, 0.5))


def test_what_an_audit_said_is_read_from_it():
    counts = SimpleNamespace(claimed=(0.6, 0.9))
    verdict = SimpleNamespace(effect="ABSTAINED", claim="MASKED", doubts=("a", "b"), counts=counts)
    sides = [SimpleNamespace(verified=side) for side in NOTHING]
    read = Said.by(SimpleNamespace(verdict=verdict, before=sides[0], after=sides[1]))
    assert read.abstained and read.doubts == 2 and read.claimed == (0.6, 0.9)
    assert read.verified == NOTHING and not read.error
