"""What several tests of this room look at."""

import pytest
from torch import Tensor, nn

import retroact as ra


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return ra.load("digits-cnn").eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return ra.data("digits/validation[:40]").images
