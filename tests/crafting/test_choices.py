"""Choices: the same values, and the derivative of the same choice at a higher temperature."""

import pytest
import torch
from torch import Tensor, fx, nn

from retroact.crafting.choices import Choice
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


def test_choices_of_the_largest_and_the_least_of_the_same_scores_have_leads_of_their_own():
    wide = torch.cat([WEIGHTS, *(0.1 * k * WEIGHTS for k in range(1, 5)), 9 * WEIGHTS[:, :1]], 1)
    table = torch.linspace(-1, 1, 2 * wide.shape[1]).view(-1, 2).sin()

    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scores = x @ wide
            return table[scores.argmax(1)] + table.flip(1)[scores.argmin(1)]

    soft, scores = soften(trace_forward(Both(), X), X, 1.0), (X @ wide).sort(1).values
    leads = (
        float((scores[:, -1] - scores[:, -10]).mean()),
        float((scores[:, 9] - scores[:, 0]).mean()),
    )
    assert leads[0] > 2 * leads[1]
    x = X.clone().requires_grad_()
    most, least = (x @ wide / leads[0]).softmax(1), (-x @ wide / leads[1]).softmax(1)
    made = most @ table + least @ table.flip(1)
    (pulled,) = torch.autograd.grad((made * 2 * Both()(X)).sum(), x)
    assert float(nn.functional.cosine_similarity(slopes(soft, X), pulled, dim=1).min()) > 0.98


MANY = torch.linspace(-9, 9, 120).view(3, 40).sin()
ROWS, CLASSES = torch.linspace(-1, 1, 80).view(40, 2).cos(), torch.arange(40) % 3


def hot(z: Tensor, index: Tensor) -> Tensor:
    return z.new_zeros(z.shape).scatter_(-1, index, 1)


FEW = {
    "five nearest": (5, 1, lambda z: ROWS[z.topk(5, 1).indices].mean(1)),
    "five least": (5, -1, lambda z: ROWS[z.topk(5, largest=False).indices].mean(1)),
    "by their order": (5, -1, lambda z: ROWS[z.argsort(1)[:, :5]].mean(1)),
    "downwards": (5, 1, lambda z: ROWS[z.sort(1, descending=True).indices[:, :5]].mean(1)),
    "the last five": (5, 1, lambda z: ROWS[z.sort(stable=True)[1][..., -5:]].mean(1)),
    "the first of five": (1, 1, lambda z: ROWS[z.topk(5).indices[:, 0]]),
    "the last": (1, 1, lambda z: ROWS[z.argsort(1)[:, -1]]),
    "kept dimension": (1, -1, lambda z: ROWS[z.argmin(1, keepdim=True)].squeeze(1)),
    "one-hot": (1, 1, lambda z: nn.functional.one_hot(z.argmax(1), 40).float() @ ROWS),
    "compared": (1, 1, lambda z: (z.argmax(1)[:, None] == torch.arange(40)).float() @ ROWS),
    "label": (1, 1, lambda z: ROWS[CLASSES[z.argmax(1)]]),
    "reshaped": (1, 1, lambda z: ROWS[z.argmax(1).view(-1, 2)].flatten(0, 1)),
    "votes": (5, 1, lambda z: nn.functional.one_hot(CLASSES[z.topk(5).indices], 3).float().mean(1)),
    "mask": (5, 1, lambda z: torch.zeros_like(z).scatter(1, z.topk(5).indices, 2.0) @ ROWS),
    "mask in place": (1, -1, lambda z: hot(z, z.argmin(1, keepdim=True)) @ ROWS),
    "a longer table": (1, 1, lambda z: ROWS.repeat(2, 1)[z.argmax(1)]),
}


class Takes(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = FEW[self.name][2](x @ MANY)
        return out


def soft_share(z: Tensor, taken: int) -> Tensor:
    """What is taken of each: of several at an edge that moves so that as much is taken as ever."""
    if taken == 1:
        return z.softmax(1)
    edge = z.sort(1, descending=True).values[:, taken - 1 : taken + 1].mean(1, keepdim=True)
    at = torch.sigmoid(z - edge.detach())
    weight = (at * (1 - at) / (at * (1 - at)).sum(1, keepdim=True)).detach()
    moved = (weight * (z - z.detach())).sum(1, keepdim=True)
    return torch.sigmoid(z - edge.detach() - moved)


@pytest.mark.parametrize("name", FEW)
def test_what_is_read_at_the_best_few_has_the_derivative_of_all_of_them(name):
    taken, sign, take = FEW[name]
    soft, scores = soften(trace_forward(Takes(name), X), X, 0.3), (sign * X @ MANY).sort(1).values
    lead = float((scores[:, -1] - scores[:, -taken - 9]).mean())
    assert torch.equal(soft(X), Takes(name)(X))
    at_each = take(sign * 100 * torch.eye(40)) if taken == 1 else None
    if at_each is None:
        at_each = nn.functional.one_hot(CLASSES, 3).float() if name == "votes" else ROWS
    x = X.clone().requires_grad_()
    p = soft_share(sign * x @ MANY / (0.3 * lead), taken)
    (pulled,) = torch.autograd.grad((p @ at_each * 2 * Takes(name)(X)).sum(), x)
    assert float(nn.functional.cosine_similarity(slopes(soft, X), pulled, dim=1).min()) > 0.98


def test_counts_have_the_derivative_of_the_shares_that_are_counted():
    """Of votes, two for each image, and of as many over the images, which are no votes for one."""

    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            each = torch.stack([x, x.flip(1)], 1).flatten(0, 1) @ MANY
            hot = nn.functional.one_hot(each.argmax(1).view(-1, 2), 40)
            return hot.sum(1).float() @ ROWS

    soft, scores = soften(trace_forward(Counts(), X), X, 0.3), torch.cat([X, X.flip(1)]) @ MANY
    ranked = scores.sort(1).values
    lead = float((ranked[:, -1] - ranked[:, -10]).mean())
    assert torch.equal(soft(X), Counts()(X))
    x = X.clone().requires_grad_()
    p = [(of @ MANY / (0.3 * lead)).softmax(1) for of in (x, x.flip(1))]
    (pulled,) = torch.autograd.grad(((p[0] + p[1]) @ ROWS * 2 * Counts()(X)).sum(), x)
    assert float(nn.functional.cosine_similarity(slopes(soft, X), pulled, dim=1).min()) > 0.98


@pytest.mark.parametrize(
    "take",
    [
        lambda z: ROWS[z.argsort(1)].mean(1) + z[:, :2],  # all of them: nothing is chosen
        lambda z: ROWS[z.argsort(1)[:, 3:5]].mean(1) + z[:, :2],  # neither first nor last
        lambda z: ROWS.T[:, z.argmax(0)].mean(1) + z[:, :2],  # the best image
        lambda z: (z @ z.T)[:, :3].argmax(1, keepdim=True) + z[:, :2],  # numbers as they are
        lambda z: nn.functional.one_hot(z.long().argmax(1), 40) @ ROWS.long() + z[:, :2],
        lambda z: (CLASSES[z.argmax(1)] == z.argmin(1))[:, None] + z[:, :2],  # two at once
    ],
)
def test_what_takes_no_best_is_left_alone(take):
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = take(x @ MANY)
            return out

    traced = trace_forward(Own(), X)
    soft, filled = soften(traced, X, 1.0), traced.fill(X)
    assert torch.equal(soft(filled), traced(filled))
    assert not [n for n in soft.graph.graph.nodes if "choice" in str(n.target)]


def test_a_table_that_would_be_written_out_too_large_is_left_alone(monkeypatch):
    def choices() -> list[str]:
        soft = soften(trace_forward(Takes("one-hot"), X), X, 0.3)
        return [str(n.target) for n in soft.graph.graph.nodes if "choice" in str(n.target)]

    assert len(choices()) == 1
    monkeypatch.setattr("retroact.crafting.choices._LARGEST", 40 * 40 - 1)
    assert not choices()


def test_a_choice_of_half_floats_far_from_the_edge_has_no_nan():
    class Far(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = (x @ MANY).to(torch.float16) * 1000
            return ROWS.half()[z.topk(5, 1).indices].mean(1).float()

    soft = soften(trace_forward(Far(), X), X, 1e-3)
    assert bool(slopes(soft, X).isfinite().all())


def test_entries_that_stand_there_twelve_times_hide_no_lead():
    once = (X @ WEIGHTS @ torch.linspace(-1, 1, 900).view(3, 300).sin()).sort(1).values
    node = fx.Graph().placeholder("x")
    lead = Choice(node, node).lead
    assert float(lead(once.repeat_interleave(12, 1))) > 0.1 * float(lead(once)) > 0
