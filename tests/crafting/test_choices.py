"""Choices: the same values, and the derivative of the same choice at a higher temperature."""

import pytest
import torch
from torch import Tensor, nn

from retroact.crafting.derived import soften, trace_forward

TABLE = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]])
WEIGHTS = torch.tensor([[3.0, -1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 1.0, -2.0]])
X = torch.tensor([[0.2, 0.7, 0.4], [0.9, 0.1, 0.3], [0.5, 0.5, 0.6], [0.3, 0.2, 0.9]])


class Attends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (500 * x @ WEIGHTS).softmax(1) @ TABLE


class Looks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return TABLE[(x @ WEIGHTS).argmax(1)]


class Mild(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (0.01 * x @ WEIGHTS).softmax(1) @ TABLE


def slopes(net: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(net(x).square().sum(), x)
    return found


@pytest.mark.parametrize("net", [Attends(), Looks()])
@pytest.mark.parametrize("width", [1.0, 0.3])
def test_it_is_the_derivative_at_a_higher_temperature(net, width):
    soft, scores = soften(trace_forward(net, X), X, width), (X @ WEIGHTS).sort(1).values
    lead = float((scores[:, -1] - scores[:, 0]).mean())  # of three there is no tenth
    assert torch.equal(soft(X), net(X))
    x = X.clone().requires_grad_()
    p = (x @ WEIGHTS / (width * lead)).softmax(1)
    pulled = torch.autograd.grad((p @ TABLE * 2 * net(X).detach()).sum(), x)[0]
    # the lead is that of the images that the trace was filled with, all of them as often or so
    cosine = nn.functional.cosine_similarity(slopes(soft, X), pulled, dim=1)
    assert float(cosine.min()) > 0.98


def test_a_choice_that_is_soft_keeps_its_own_derivative():
    net = Mild()
    soft = soften(trace_forward(net, X), X, 1.0)
    assert torch.allclose(slopes(soft, X), slopes(net, X), rtol=1e-4, atol=1e-9)


def test_a_table_that_moves_with_the_image_is_left_alone():
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows = torch.stack([x.sum(0), 2 * x.sum(0)])
            return rows[(x @ WEIGHTS[:, :2]).argmax(1)]

    traced = trace_forward(Own(), X)
    soft = soften(traced, X, 1.0)
    filled = traced.fill(X)
    assert torch.equal(soft(filled), traced(filled))
    assert not [n for n in soft.graph.graph.nodes if "choice" in str(n.target)]
