"""evaluate: doors, judgement in a fresh forward pass, and facts that can be checked."""

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import retroact as ra
from retroact.attacks.pgd import PGD
from retroact.crafting.goals import Targeted
from retroact.crafting.threat import L2, Linf
from retroact.evaluation.evaluate import decide, evaluate
from retroact.evaluation.metrics import robust_accuracy, success_rate
from retroact.spec import parse


@dataclass
class Few:
    images: Tensor
    labels: Tensor
    index: Tensor
    name: str = "few[:30]"


@pytest.fixture(scope="module")
def scene():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 24 * 24, 10)
    ).eval()
    x = torch.rand(30, 1, 28, 28)
    y = net(x).argmax(1).detach()
    y[:5] = (y[:5] + 1) % 10
    return net, Few(x, y, torch.arange(100, 130))


def test_the_facts_are_those_of_the_images(scene):
    net, few = scene
    record = evaluate(net, few, PGD(steps=10), Linf(0.02), keep=30)
    adversarial = torch.from_numpy(record.examples)
    assert record.clean.tolist() == net(few.images).argmax(1).tolist()
    assert record.adversarial.tolist() == net(adversarial).argmax(1).tolist()
    difference = (adversarial - few.images).flatten(1).double()
    assert np.allclose(record.distance[:, 2], difference.norm(dim=1).numpy())
    assert np.allclose(record.distance[:, 3], difference.abs().amax(1).numpy())
    assert np.array_equal(record.distance[:, 0], (difference != 0).sum(1).numpy())
    assert record.index.tolist() == list(range(100, 130))
    assert np.array_equal(record.originals, few.images.numpy())
    assert set(record.pedigree) >= {
        "network",
        "attack",
        "threat",
        "seed",
        "seconds",
        "versions",
        "machine",
    }


def test_a_goal_for_each_image_is_kept_whatever_the_order_slice_and_chunk(scene):
    net, few = scene
    targets = (few.labels + torch.arange(30) % 3) % 10  # every third has its own class for a target
    whole = evaluate(net, few, PGD(steps=10), Linf(0.2), goal=targets, keep=30)
    assert whole.target.tolist() == targets.tolist()
    assert (
        success_rate(whole) == np.mean((whole.adversarial == whole.target)[eligible(whole)]) > 0.5
    )
    assert (
        eligible(whole).sum()
        == ((targets != few.labels) & (torch.from_numpy(whole.clean) != targets)).sum()
    )
    for rows in (torch.arange(29, -1, -1), torch.arange(4, 17)):
        part = Few(few.images[rows], few.labels[rows], few.index[rows])
        by_class = evaluate(
            net, part, PGD(steps=10), Linf(0.2), goal=targets[rows].numpy(), chunk=7, keep=30
        )
        by_goal = evaluate(
            net,
            part,
            PGD(steps=10),
            Linf(0.2),
            goal=parse(whole.pedigree["goal"]),
            chunk=7,
            keep=30,
        )
        assert by_class == by_goal
        assert np.abs(by_class.examples - whole.examples[rows]).max() < 1e-5
        assert by_class.target.tolist() == targets[rows].tolist()
    with pytest.raises(ValueError, match=r"one target per example, shape \(30,\), got \(29,\)"):
        evaluate(net, few, PGD(steps=10), Linf(0.2), goal=targets[1:])
    with pytest.raises(ValueError, match="classes from 0 to 9, got 10"):
        evaluate(net, few, PGD(steps=10), Linf(0.2), goal=[10] * 30)


def eligible(record):
    return (record.label != record.target) & (record.clean != record.target)


def test_images_whose_logits_are_all_alike_are_not_decided(scene):
    net, few = scene

    def blind(x: Tensor) -> Tensor:
        return net(x) * (torch.arange(len(x)) % 2)[:, None]

    decided, right = decide(blind, few.images, chunk=30), net(few.images).argmax(1)
    assert (decided[::2] == -1).all() and torch.equal(decided[1::2], right[1::2])
    near = torch.tensor([[1.0, 1 + 2**-20], [1.0, 1.0]])
    assert decide(lambda x: near, few.images[:2]).tolist() == [-1, -1]
    assert decide(lambda x: near, few.images[:2], attacked=True).tolist() == [1, -1]


def test_keep_keeps_the_first_so_many(scene):
    net, few = scene
    assert evaluate(net, few, PGD(steps=2), Linf(0.02), keep=4).examples.shape == (4, 1, 28, 28)
    assert evaluate(net, few, PGD(steps=2), Linf(0.02)).examples is None


def test_the_record_does_not_depend_on_run_or_mode(scene):
    net, few = scene
    first = evaluate(net, few, PGD(steps=5), L2(0.5), seed=7)
    net.train()
    assert evaluate(net, few, PGD(steps=5), L2(0.5), seed=7) == first
    assert net.training
    net.eval()
    assert evaluate(net, few, PGD(steps=5), L2(0.5), seed=8) != first


def test_chunks_change_noise_by_nothing_and_results_by_rounding(scene):
    net, few = scene
    big = evaluate(net, few, PGD(steps=5), Linf(0.01), chunk=30, keep=30)
    small = evaluate(net, few, PGD(steps=5), Linf(0.01), chunk=7, keep=30)
    assert np.abs(big.examples - small.examples).mean() < 1e-4
    assert (big.adversarial == small.adversarial).mean() > 0.95


def test_transfer_is_weaker_than_white_box(scene):
    net, few = scene
    torch.manual_seed(5)
    other = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    white = evaluate(net, few, PGD(steps=10), Linf(0.02))
    gray = evaluate(net, few, PGD(steps=10), Linf(0.02), source=other)
    assert robust_accuracy(white) < robust_accuracy(gray) <= 25 / 30
    assert gray.pedigree["source"] == "Sequential" and white.pedigree["source"] is None


def test_targets_are_on_the_record(scene):
    net, few = scene
    record = evaluate(net, few, PGD(steps=20), Linf(0.1), goal=Targeted(3))
    assert set(record.target.tolist()) == {3}
    assert success_rate(record) > 0.5


def test_logits_that_overflow_are_flagged_and_decide_nothing(scene):
    net, few = scene
    exploding = nn.Sequential(net, Scaled(1e38), Scaled(1e38))
    record = evaluate(exploding, few, PGD(steps=3), Linf(0.02))
    assert record.nonfinite.all()
    assert (record.clean == -1).all() and (record.adversarial == -1).all()
    assert (record.distance == 0).all()


class Cramped(nn.Module):
    """A network on a device with room for so many images."""

    def __init__(self, inner: nn.Module, room: int, error: Exception) -> None:
        super().__init__()
        self.inner, self.room, self.error = inner, room, error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise self.error
        return self.inner(x)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=str,
)
def test_without_memory_the_chunk_halves_and_the_run_goes_on(scene, error):
    net, few = scene
    record = evaluate(Cramped(net, 4, error), few, PGD(steps=5), Linf(0.02))
    assert (
        record.adversarial == evaluate(net, few, PGD(steps=5), Linf(0.02), chunk=4).adversarial
    ).mean() > 0.95
    with pytest.raises(type(error), match="memory"):
        evaluate(Cramped(net, 0, error), few, PGD(steps=5), Linf(0.02))
    with pytest.raises(RuntimeError, match="shapes"):
        evaluate(Cramped(net, 4, RuntimeError("shapes do not fit")), few, PGD(steps=5), Linf(0.02))


class Scaled(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, z: Tensor) -> Tensor:
        return z * self.by


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": torch.rand(30, 1, 28, 28) * 255}, "divide by 255"),
        ({"images": torch.rand(30, 1, 28, 28) - 0.5}, r"expected .* in \[0, ?1\]"),
        ({"images": torch.full((30, 1, 28, 28), float("nan"))}, "expected"),
        ({"images": torch.rand(30, 28, 28)}, r"\(n, c, h, w\)"),
        ({"images": (torch.rand(30, 1, 28, 28) * 255).byte()}, "expected"),
        ({"labels": torch.full((30,), 10)}, "expected labels"),
        ({"labels": torch.full((30,), -1)}, "expected labels"),
        ({"images": torch.rand(0, 1, 28, 28), "labels": torch.zeros(0).long()}, "at least one"),
    ],
)
def test_bad_data_is_refused_before_any_work(scene, change, says):
    net, few = scene
    parts = {"images": few.images, "labels": few.labels, "index": few.index} | change
    with pytest.raises((ValueError, TypeError), match=says):
        evaluate(net, Few(**parts), PGD(steps=1), Linf(0.1))


def test_rounding_at_the_edge_of_the_box_is_let_pass(scene):
    net, few = scene
    evaluate(net, Few(few.images * (1 + 5e-7), few.labels, few.index), PGD(steps=1), Linf(0.1))


def test_probabilities_are_warned_of(scene):
    net, few = scene
    with pytest.warns(UserWarning, match="probabilities"):
        evaluate(nn.Sequential(net, nn.Softmax(1)), few, PGD(steps=1), Linf(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(net, few, PGD(steps=1), Linf(0.1))


def test_half_precision_networks_are_judged_in_float32(scene):
    net, few = scene
    import copy

    half = copy.deepcopy(net).to(torch.bfloat16)
    record = evaluate(half, few, PGD(steps=5), Linf(0.02))
    assert robust_accuracy(record) < 25 / 30
    assert torch.equal(decide(half, few.images), torch.from_numpy(record.clean))


@pytest.mark.parametrize("attack", [ra.DDN(steps=40), ra.FMN(steps=40), ra.DeepFool()], ids=str)
def test_a_half_network_of_tiny_logits_is_attacked_as_any(attack):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 5)
    )
    x = torch.rand(24, 1, 8, 8)
    with torch.no_grad():
        net[3].bias -= net(x).median(0).values
        net[3].weight *= 2.0**-10
        net[3].bias *= 2.0**-10
    net.half()
    data = ra.Images.of(x, net(x.half()).argmax(1))
    record = ra.evaluate(net, data, attack, ra.L2(3.0))
    assert ra.robust_accuracy(record) < 0.5 and not record.nonfinite.any()
