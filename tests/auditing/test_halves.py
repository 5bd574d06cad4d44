"""Networks of half floats are audited as they are, also those that take nothing but halves."""

import copy

import pytest
import torch
from torch import Tensor, nn

import retroact as ra


class Strict(nn.Module):
    """A stranger's network, which checks what it is given."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = copy.deepcopy(ra.load("digits-cnn")).to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == self.dtype, f"expected {self.dtype}, got {x.dtype}"
        return self.net(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_of_halves_gains_nothing(dtype):
    data = ra.data("digits/validation[:60]")
    made = ra.audit("digits-cnn", Strict(dtype), data, "Linf(0.1)", battery="quick")
    before, after = made.verdict.counts.verified
    assert abs(after - before) <= 0.05 and not made.verdict.doubts
    assert made.verdict.effect in ("NO EFFECT", "INCONCLUSIVE")
