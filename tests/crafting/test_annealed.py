"""Annealed takes its forms in turn, and Momentum tells it when."""

import pytest
import torch
from torch import Tensor, nn

import retroact as ra
from retroact.attacks.momentum import Momentum
from retroact.attacks.pgd import PGD
from retroact.crafting.annealed import Annealed
from retroact.crafting.driver import craft
from retroact.crafting.threat import L2, Linf
from retroact.retrofitting.lean import lean


class Form(nn.Module):
    """A linear net that counts its passes with a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        self.climbed = 0

    def forward(self, x: Tensor) -> Tensor:
        self.climbed += int(x.requires_grad)
        return x.flatten(1) @ self.weight


def test_no_form_is_refused():
    with pytest.raises(ValueError, match="at least one form"):
        Annealed([])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_form_has_an_equal_part_of_the_run(count):
    net = Annealed([nn.Linear(1, 1) for _ in range(count)])
    shares = [0.0, 0.2, 0.49, 0.51, 0.8, 0.999, 1.0]
    turns = []
    for share in shares:
        net.progress(share)
        shown = net(torch.ones(1, 1))
        turns.append(
            next(
                i for i, form in enumerate(net.forms) if torch.equal(shown, form(torch.ones(1, 1)))
            )
        )
    assert turns == [min(int(share * count), count - 1) for share in shares]


class Listening:
    """An Annealed that is no module, so that attacks take it itself and not a lean copy."""

    def __init__(self, forms: list[Form]) -> None:
        self.net, self.told = Annealed(forms), []

    def progress(self, share: float) -> None:
        self.told.append(share)
        self.net.progress(share)

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("as_source", [False, True])
def test_momentum_climbs_each_form_for_its_part_and_begins_anew_with_each_start(as_source):
    net = Listening([Form(), Form(), Form()])
    x, y = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([0])
    under_attack, how = (Form(), {"source": net}) if as_source else (net, {})
    made = craft(
        Momentum(steps=9, restarts=2), under_attack, x, y, torch.arange(1), Linf(0.1), **how
    )
    assert int(made.gradients[0]) == 18
    assert [form.climbed for form in net.net.forms] == [6, 6, 6]
    assert net.told == [1.0, *([k / 9 for k in range(9)] * 2)]


@pytest.mark.parametrize("as_source", [False, True])
def test_who_tells_no_progress_climbs_the_last_form_whoever_climbed_before(as_source):
    net = Annealed([Form(), Form(), Form()])
    x, y = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([0])
    for left in (0.0, 0.5, None):
        if left is not None:
            net.progress(left)
        under_attack, how = (Form(), {"source": net}) if as_source else (net, {})
        craft(PGD(steps=4), under_attack, x, y, torch.arange(1), Linf(0.1), **how)
    assert [form.climbed for form in net.forms] == [0, 0, 12]


def test_a_lean_copy_still_takes_its_forms_in_turn():
    net = lean(Annealed([nn.Linear(1, 1), nn.Linear(1, 1)]), torch.rand(2, 1))
    x = torch.ones(1, 1)
    for share, form in ((0.0, 0), (0.9, 1)):
        net.progress(share)
        assert torch.equal(net(x), net.forms[form](x)) and not torch.equal(
            net(x), net.forms[1 - form](x)
        )


@pytest.mark.parametrize(
    ("threat", "margin"), [(Linf(0.2), 0.2), (L2(0.3), 0.3 * 2**-0.5)], ids=str
)
def test_momentum_reaches_the_far_corner_of_the_ball_on_a_linear_net(threat, margin):
    x, y = torch.tensor([[[[0.9, 0.1]]]]), torch.tensor([0])
    made = craft(Momentum(steps=20), Form(), x, y, torch.arange(1), threat)
    assert torch.allclose(made.x_adv, x + margin * torch.tensor([[[[-1.0, 1.0]]]]), atol=1e-3)


def test_kernels_in_turn_fell_more_than_a_blind_gradient():
    net, part = ra.load("digits-cnn"), ra.data("digits/validation[:80]")
    hard = ra.retrofit(net, ra.JumpReLU(0.5))
    guide = Annealed(
        [ra.refit(hard, ra.JumpReLU(0.5).surrogate(beta / 0.5)) for beta in (4.0, 8.0, 16.0)]
    )
    stands = {}
    for name, source in (("blind", hard), ("kernels", guide)):
        x_adv = craft(
            Momentum(steps=20), source, part.images, part.labels, part.index, Linf(0.12)
        ).x_adv
        with torch.no_grad():
            stands[name] = int((hard(x_adv).argmax(1) == part.labels).sum())
    assert stands["kernels"] < stands["blind"] - 4
