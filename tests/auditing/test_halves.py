"""Networks of half floats are audited as they are, also those that take nothing but halves."""

import copy

import pytest
import torch
from torch import Tensor, nn

import retroact as ra
from retroact.auditing.battery import Battery

SMALL = Battery(
    steps=12, targets=3, targeted_steps=15, finish=20, trial_steps=8, sample=20, queries=0
)


class Strict(nn.Module):
    """A stranger's network, which checks what it is given."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = copy.deepcopy(ra.load("digits-cnn")).to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == self.dtype, f"expected {self.dtype}, got {x.dtype}"
        return self.net(x)


@pytest.mark.parametrize("dtype", [torch.float16])
def test_a_network_of_halves_gains_nothing(dtype):
    data = ra.data("digits/validation[:40]")
    made = ra.audit("digits-cnn", Strict(dtype), data, "Linf(0.1)", battery=SMALL)
    before, after = made.verdict.counts.verified
    assert abs(after - before) <= 0.05 and not made.verdict.doubts
    assert made.verdict.effect in ("NO EFFECT", "INCONCLUSIVE")
