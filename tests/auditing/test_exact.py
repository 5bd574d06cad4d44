"""On a table the truth can be computed: whether any point of the ball is decided otherwise, as a
mixed-integer program over the network's units (Tjeng et al. 2019, arXiv:1711.07356)."""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from sklearn.datasets import load_breast_cancer
from torch import nn

import retroact as ra

SIDE = 1e-3  # of a jump's threshold on which rounding would decide


class Program:
    """Variables with bounds, and rows low ≤ a·v ≤ high."""

    def __init__(self) -> None:
        self.low, self.high, self.whole, self.rows = [], [], [], []

    def add(self, low: float, high: float, *, whole: bool = False) -> int:
        self.low.append(low), self.high.append(high), self.whole.append(whole)
        return len(self.low) - 1

    def solve(self) -> NDArray[np.float64] | None:
        """A point that keeps to all of it; None where there is none."""
        table = np.zeros((len(self.rows), len(self.low)))
        for row, (weights, _, _) in zip(table, self.rows, strict=True):
            for variable, weight in weights:
                row[variable] += weight
        ends = np.array([(low, high) for _, low, high in self.rows])
        found = milp(
            np.zeros(len(self.low)),
            constraints=LinearConstraint(table, *ends.T),
            bounds=Bounds(self.low, self.high),
            integrality=self.whole,
        )
        assert found.status in (0, 2), found.message
        return found.x if found.status == 0 else None


def adversarial(layers: list, x: NDArray, y: int, eps: float, kappa: float) -> NDArray | None:
    """A point within eps of `x` in [0, 1] that a network of two classes does not decide as `y`."""
    program = Program()
    low, high = np.maximum(0, x - eps), np.minimum(1, x + eps)
    units = [program.add(*ends) for ends in zip(low, high, strict=True)]
    *inner, (weight, bias) = layers
    for w, b in inner:
        below = np.maximum(w, 0) @ low + np.minimum(w, 0) @ high + b
        above = np.maximum(w, 0) @ high + np.minimum(w, 0) @ low + b
        z = [[*zip(units, row, strict=True)] for row in w]
        units = [unit(program, *of, kappa) for of in zip(z, b, below, above, strict=True)]
        low, high = (np.array(ends)[units] for ends in (program.low, program.high))
    gap = weight[1 - y] - weight[y]
    program.rows.append(([*zip(units, gap, strict=True)], bias[y] - bias[1 - y] + 1e-4, np.inf))
    found = program.solve()
    return None if found is None else found[: len(x)]


def unit(program: Program, z: list, bias: float, low: float, high: float, kappa: float) -> int:
    """z + bias where that is above kappa, else 0; `on` says which."""
    least, most = min(low, -1.0), max(high, kappa + 1.0)  # beyond what z + bias can be
    out, on = program.add(0, max(high, 0.0)), program.add(0, 1, whole=True)
    side = SIDE if kappa else 0.0
    program.rows += [
        ([(out, 1), (on, -most)], -np.inf, 0),
        ([*z, (on, -(kappa + side - least))], least - bias, np.inf),  # on: z + bias above kappa
        ([*z, (on, -(most - kappa + side))], -np.inf, kappa - side - bias),  # off: below
        ([*z, (out, -1), (on, least)], least - bias, np.inf),  # on: out ≤ z + bias
        ([*z, (out, -1), (on, most)], -np.inf, most - bias),  # on: out ≥ z + bias
    ]
    return out


@cache
def table() -> tuple[ra.Classifier, ra.Images]:
    """A network of 16 and 16 units on scikit-learn's breast cancer, and 60 of its rows."""
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(x))
    train, test = order[:400], order[400:460]
    low, high = x[train].min(0), x[train].max(0)
    x = torch.tensor(((x - low) / (high - low)).clip(0, 1), dtype=torch.float32)
    y = torch.tensor(y)
    torch.manual_seed(0)
    layers = nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)
    net = ra.Classifier(nn.Sequential(*layers), shape=(30,))
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(200):
        loss = F.cross_entropy(net(x[train]), y[train])
        adam.zero_grad(), loss.backward(), adam.step()
    return net.requires_grad_(False), ra.Images.of(x[test], y[test], shape=(30,))


@pytest.mark.parametrize(("kappa", "eps"), [(0.0, 0.06), (0.3, 0.03), (1.0, 0.06)])
def test_what_the_audit_verifies_is_the_truth_but_for_a_jumps_last_examples(kappa, eps):
    net, data = table()
    layers = [
        (m.weight.double().numpy(), m.bias.double().numpy())
        for m in net.module
        if hasattr(m, "bias")
    ]
    hard = ra.retrofit(net, ra.JumpReLU(kappa))
    side = ra.audit(net, hard, data, ra.Linf(eps), battery="quick").after
    missed = 0
    for row in np.flatnonzero(side.clean):
        x, y = data.images[row].double().numpy(), int(data.labels[row])
        point = adversarial(layers, x, y, eps, kappa)
        if point is None:  # nothing in the ball: no attack may claim to have found it
            assert side.verified[row]
        elif side.verified[row]:
            assert int(hard(torch.tensor(point, dtype=torch.float32)[None]).argmax()) != y
            missed += 1
    assert missed <= (0 if kappa == 0 else 2)
    assert 5 < side.verified.sum() < side.clean.sum()
