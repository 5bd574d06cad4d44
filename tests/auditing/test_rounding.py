"""What is rounded has no gradient, and an audit that follows gradients does not call it GENUINE."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from little import two_layers
from torch import Tensor, nn

import retroact as ra
from retroact.auditing.audit import Audit
from retroact.auditing.battery import QUICK


class Rounded(nn.Module):
    """The net with its input, each activation's output, or its logits rounded to a grid."""

    def __init__(self, net: nn.Module, what: str, grid: float) -> None:
        super().__init__()
        self.net, self.what, self.grid = net, what, grid
        if what == "activations":
            for module in net.modules():
                if isinstance(module, nn.ReLU):
                    module.register_forward_hook(lambda m, args, out: self.round(out))

    def round(self, x: Tensor) -> Tensor:
        return torch.round(x / self.grid) * self.grid

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(self.round(x) if self.what == "input" else x)
        return self.round(logits) if self.what == "logits" else logits


LITTLE, EPS = "two layers", ra.Linf(0.08)
"""What withstands about as much within this radius as the others do within 0.1."""


def load(name: str) -> nn.Module:
    """A network of one's own, which may be given hooks."""
    if name == LITTLE:
        return ra.Classifier(copy.deepcopy(two_layers()), shape=(1, 8, 8))
    return ra.load(name)


@cache
def audited(name: str, what: str, grid: float) -> Audit:
    data, eps, battery = "digits[:40]", EPS, QUICK
    if name != LITTLE:
        data, eps, battery = "mnist[:24]", ra.Linf(0.1), replace(QUICK, alarmed_finish=45)
    return ra.audit(load(name), Rounded(load(name), what, grid), data, eps, battery=battery)


@pytest.mark.parametrize(
    ("name", "what", "grid"),
    [
        pytest.param(LITTLE, "logits", 0.01, marks=pytest.mark.long),  # beside 0.5
        (LITTLE, "logits", 0.5),
        (LITTLE, "activations", 0.25),
        ("lenet-mnist", "input", 1 / 255),
    ],
)
def test_rounding_gains_nothing_and_is_named(name, what, grid):
    made = audited(name, what, grid)
    verdict = made.verdict
    assert verdict.effect != "GENUINE" and verdict.counts.verified_gain <= 0.05, str(made)
    assert verdict.masked and "wrong gradient" in verdict.mechanisms, str(made)
    assert verdict.counts.claimed[1] > 0.9  # what the usual attack would have said
    # rounded logits are those of the last layer, but for what follows it
    ways = ("difference quotient", *(["network that ends in its last"] if what == "logits" else []))
    assert made.after.kernel.startswith(ways)


def test_a_battery_of_few_steps_begins_what_broke_most_anew():
    made = audited(LITTLE, "logits", 0.5)
    targeted = [run for run in made.after.attacks if run.title.startswith("targeted")]
    once = [run for run in targeted if "anew" not in run.title]
    anew = targeted[len(once) :]
    through = max(once, key=lambda run: run.broken).title.removeprefix("targeted")
    titles = [f"targeted anew, {turn}{through}" for turn in (1, 2)]
    assert [run.title for run in anew] == titles[: len(anew)] and anew
    assert len(anew) == 2 or anew[0].broken < max(2, 0.05 * anew[0].asked)
    assert not any("anew" in run.title for run in made.before.attacks)
    still = anew[-1].broken >= max(2, 0.05 * anew[-1].asked)
    assert still == any("still broke" in doubt for doubt in made.verdict.doubts)


def test_two_networks_that_are_rounded_alike_do_not_hide_each_other():
    pair = [Rounded(load(LITTLE), "activations", 1 / levels) for levels in (16, 8)]
    made = ra.audit(*pair, "digits[:40]", EPS, battery=QUICK)
    assert made.verdict.claim != "HONEST" and made.verdict.effect != "GENUINE"
    assert min(made.verdict.counts.claimed) > 0.9 and max(made.verdict.counts.verified) < 0.75


def test_quick_says_genuine_only_after_its_controls():
    net, threat = load(LITTLE), ra.Linf(0.1)
    recipe = ra.Hardening(learn="all", steps=200, batch=128, lr=0.003)
    robust = ra.harden(net, ra.data("digits/train"), threat, recipe).net
    made = ra.audit(net, robust, ra.data("digits[:80]"), threat, battery=QUICK)
    assert made.verdict.effect == "GENUINE" and not made.verdict.doubts
    controls = [run.title for run in made.after.attacks if run.role == "control"]
    assert controls == ["APGD, transfer", "Square"]
    assert not any(run.role == "control" for run in made.before.attacks)
    same = ra.audit(net, net, ra.data("digits[:20]"), threat, battery=QUICK)
    assert not any(run.role == "control" for run in same.after.attacks)
