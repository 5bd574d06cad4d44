"""Every mechanism is what it says it is: it decides much as the network it wraps, has a gradient or
none, and its truth is that of the network within where no answer is changed."""

from collections import Counter
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import retroact as ra
from retroact.auditing.mechanisms.collection import mechanisms
from retroact.auditing.mechanisms.mechanism import Given, Made, Mechanism, Rewritten, responses
from retroact.auditing.mechanisms.truth import truth
from retroact.evaluation.evaluate import decide

EPS = ra.Linf(0.1)
BLURRED = {
    "median of 3 x 3 pixels",
    "median of 3 x 3 pixels, by numpy",
    "every second pixel, twice as large",
    "moved by up to a pixel",
}
"""What 8 x 8 pixels cannot bear."""


@cache
def net() -> ra.Classifier:
    return ra.load("digits-cnn")


@cache
def given() -> Given:
    other = deepcopy(net())
    with torch.no_grad():
        other.module.fc2.weight.mul_(0.9)
    return Given(net(), (other, other), ra.data("digits/train[:256]"), EPS.eps)


@cache
def data() -> ra.Images:
    return ra.data("digits/validation[:40]")


def find(name: str) -> Mechanism:
    return next(m for m in mechanisms() if m.name == name)


def under_truth(made: Made, **how: int) -> np.ndarray:
    return truth(made, data(), EPS, steps=20, **how)


@cache
def of_the_network() -> np.ndarray:
    return under_truth(Made(net(), (net(),)))


def has_gradient(made: nn.Module) -> bool:
    x = data().images[:2].clone().requires_grad_()
    try:
        (gradient,) = torch.autograd.grad(made(x).sum(), x, allow_unused=True)
    except RuntimeError:
        return False
    return gradient is not None


def test_names_are_told_apart_and_every_kind_is_there():
    names = Counter(m.name for m in mechanisms())
    assert names.most_common(1)[0][1] == 1 and len(names) > 80
    kinds = Counter(m.kind for m in mechanisms())
    assert len(kinds) == 9 and min(kinds.values()) >= 2
    fast = mechanisms(fast=True)
    # those that draw take an audit's time many times over
    assert 20 < len(fast) < len(names) / 2 and {m.kind for m in fast} == set(kinds) - {"random"}


def test_every_reported_row_is_there():
    rows = {int(row) for m in mechanisms() for row in m.row.split(",") if row.strip()}
    assert rows == set(range(1, 33))


@pytest.mark.filterwarnings("ignore:.*linear_dynamic")
@pytest.mark.parametrize("mechanism", mechanisms(), ids=str)
def test_a_mechanism_decides_much_as_the_network_it_wraps(mechanism):
    made = mechanism.build(given())
    assert has_gradient(made.net) == mechanism.graph
    torch.manual_seed(0)
    right = float((decide(made.judged, data().images) == data().labels).float().mean())
    assert right > (0.3 if mechanism.name in BLURRED else 0.7)
    assert made.climbs and all(map(has_gradient, made.climbs))
    assert mechanism.before is None or has_gradient(mechanism.before(given()).net)


def test_a_network_is_rewritten_bit_for_bit():
    with torch.no_grad():
        assert torch.equal(Rewritten(net())(data().images), net()(data().images))


@pytest.mark.parametrize(
    "name",
    [
        "backward pass zero",
        "backward pass random",
        "gradient of 70 % of the pixels",
        "a decoy while gradients are recorded",
        "one-hot of the decision",
        "answers remembered",
        "relu with a backward pass of the wrong sign where small",
    ],
)
def test_where_no_answer_is_changed_the_truth_is_that_of_the_network(name):
    plain = of_the_network()
    assert 0.3 < plain.mean() < 0.8
    assert under_truth(find(name).build(given())).tolist() == plain.tolist()


@pytest.mark.parametrize(
    "name",
    ["a staircase of three jumps by hand", "relu(z) + 0.3 sin 30 z", "activations rounded to 1/4"],
)
def test_what_its_own_gradient_leaves_standing_is_brought_down(name):
    made = find(name).build(given())
    assert under_truth(made).mean() < under_truth(Made(made.net, (made.net,))).mean() - 0.1


def test_a_gain_is_a_gain_and_draws_are_averaged():
    plain = of_the_network().mean()
    assert under_truth(find("images of 2 levels").build(given())).mean() > plain + 0.1
    noisy = find("noise of 0.1 on the image")
    assert under_truth(noisy.build(given()), draws=4).mean() < plain + 0.1


def test_a_cache_remembers_and_its_copy_answers_afresh():
    made = find("answers remembered").build(given())
    fresh, x = deepcopy(made.net), data().images[:1]
    near = (x + 0.05).clamp(0, 1)
    with torch.no_grad():
        first = made.net(x)
        assert torch.equal(made.net(near), first) and not torch.equal(fresh(near), first)


def test_answers_of_a_batch_depend_on_it():
    for name in ("normalised by the batch", "logits mixed with a neighbour's"):
        made, x = find(name).build(given()), data().images[:8]
        with torch.no_grad():
            alone = torch.cat([made.net(image) for image in x.split(1)])
            assert torch.allclose(alone, made.judged(x), atol=1e-4)
            assert (made.net(x) - alone).abs().max() > 0.1


def test_relus_within_blocks_are_called_too():
    deep = ra.load("resnet20-cifar10")
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    calls: list[int] = []

    def note(at: int):
        return lambda z: (calls.append(at), torch.relu(z))[1]

    with torch.no_grad():
        # in the order in which they are called
        assert torch.equal(Rewritten(deep, [note(k) for k in range(19)])(x), deep(x))
    assert calls == list(range(19)) and len(responses(deep, x)) == 19
