"""check: a number from a paper beside what the network withstands."""

import json

import numpy as np
import pytest
import torch
from little import two_layers
from torch import Tensor, nn

import retroact as ra
from retroact.auditing.battery import Battery
from retroact.spec import CallError

DATA, EPS = "digits[:40]", "Linf(0.08)"
SMALL = Battery(
    steps=12, targets=3, targeted_steps=15, finish=20, trial_steps=8, sample=20, queries=60
)


class Rounded(nn.Module):
    """Logits to two decimals: no gradient, and nothing gained."""

    def __init__(self) -> None:
        super().__init__()
        self.net = two_layers()

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(self.net(x), decimals=2)


class Nearest(nn.Module):
    """The class whose mean image is nearest, in numpy: there is nothing inside to climb."""

    def __init__(self) -> None:
        super().__init__()
        train = ra.data("digits/train")
        self.means = [train.images[train.labels == k].mean(0).numpy() for k in range(10)]

    def forward(self, x: Tensor) -> Tensor:
        images = x.detach().numpy()[:, None]
        distances = ((images - np.stack(self.means)) ** 2).sum((2, 3, 4))
        return torch.from_numpy(np.eye(10, dtype=np.float32)[distances.argmin(1)])


def check(net: object, reported: float | None, **how: object) -> object:
    return ra.check(net, DATA, EPS, reported, battery=SMALL, **how)


@pytest.fixture(scope="module")
def plain():
    return check(two_layers(), 50.0)


def test_a_claim_that_nothing_speaks_against_stands(plain):
    assert plain.statement == "STANDS" and plain.excess == 0.0 and not plain.doubts
    low, high = plain.interval
    assert low < plain.verified < high and plain.verified <= plain.claimed <= plain.clean
    assert "the claim of 50.0 % stands" in str(plain) and f"n = {plain.n}" in str(plain)


def test_no_claim_stands_without_controls(plain):
    assert {"APGD, transfer", "Square"} <= {a.title for a in plain.audit.after.attacks}


def test_it_is_the_audits_number(plain):
    beside = ra.audit(two_layers(), "JumpReLU(0.5)", DATA, EPS, battery=SMALL)
    assert plain.verified == beside.verdict.counts.verified[0]


def test_a_claim_above_what_is_left_is_too_high_by_at_least_so_much():
    said = check(Rounded(), 99.0)
    assert said.statement == "TOO HIGH" and said.claimed > 0.9 and "no gradient" in said.alarms
    assert said.excess == pytest.approx(0.99 - said.interval[1]) and said.excess > 0.2
    assert f"too high by at least {100 * said.excess:.1f} points" in str(said)


def test_where_the_attacks_are_blind_a_claim_below_them_cannot_be_told():
    said = check(Nearest(), 20.0)
    assert said.clean > 0.8 and said.statement == "CANNOT BE TOLD" and said.doubts


def test_where_nothing_is_claimed_nothing_is_said_of_it():
    little = Battery(1, 1, 1, 1, trial_steps=0, sample=4, queries=0, points=20)
    asked = ra.check(two_layers(), "digits[:12]", EPS, None, battery=little)
    assert asked.statement == "NOT ASKED"


def test_json_holds_what_it_says(plain):
    told = plain.to_json()
    assert told["statement"] == "STANDS" and told["reported"] == 0.5
    assert told["n"] == plain.n and told["verified"] == plain.verified
    assert sum(a["felled"] for a in told["attacks"]) == round((plain.clean - plain.verified) * 40)
    assert json.loads(json.dumps(told, allow_nan=False)) == told


@pytest.mark.parametrize("reported", [0.53, -3.0, 120.0])
def test_a_number_that_is_no_percentage_is_refused(reported):
    with pytest.raises(CallError, match=r"expected per cent.*53\.1 for 53\.1 %"):
        check("digits-cnn", reported)
