"""LeNet as its authors' code has it, typed in by hand: what its code does itself is audited like a
retrofit."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retroact as ra
from retroact.activations.ramp import Ramp
from retroact.auditing.audit import Audit
from retroact.auditing.battery import Battery

EPS = ra.Linf(0.1)
SMALL = Battery(
    steps=12,
    targets=3,
    targeted_steps=15,
    finish=20,
    trial_steps=8,
    sample=12,
    queries=0,
    points=30,
    alarmed_finish=30,
)

BRIEF = Battery(
    steps=3, targets=2, targeted_steps=3, finish=3, trial_steps=2, queries=0, alarmed_finish=3
)


class LeNet(nn.Module):
    """The LeNet-like net of Erichson et al. 2019 with `view`, and with its activation as a
    threshold in place."""

    def __init__(self, kappa: float) -> None:
        super().__init__()
        self.conv1, self.conv2, self.drop = (
            nn.Conv2d(1, 10, 5),
            nn.Conv2d(10, 20, 5),
            nn.Dropout2d(),
        )
        self.fc1, self.fc2, self.fc3 = nn.Linear(320, 120), nn.Linear(120, 90), nn.Linear(90, 10)
        self.kappa = kappa

    def active(self, x: Tensor) -> Tensor:
        x[x <= self.kappa] = 0
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.active(F.max_pool2d(self.conv1(x), 2))
        x = self.active(F.max_pool2d(self.drop(self.conv2(x)), 2))
        x = x.view(-1, 320)
        return self.fc3(self.active(self.fc2(self.active(self.fc1(x)))))


def by_hand(kappa: float) -> ra.Classifier:
    net = LeNet(kappa)
    trained = ra.load("lenet-mnist").module.state_dict().values()
    net.load_state_dict(dict(zip(net.state_dict(), trained, strict=True)))
    return ra.Classifier(net, 0.1307, 0.3081, shape=(1, 28, 28))


@pytest.fixture(scope="module")
def ours() -> Audit:
    return ra.audit("lenet-mnist", "JumpReLU(1.0)", "mnist[:30]", EPS, battery=SMALL)


def test_it_gets_the_verdict_of_our_own(ours):
    made = ra.audit(by_hand(0.0), by_hand(1.0), "mnist[:30]", EPS, battery=SMALL)
    assert made.verdict.effect == "HARMFUL" and made.verdict.claim.startswith("MASKED")
    assert made.pedigree.forms == ("frozen", "frozen")
    assert made.verdict.counts == ours.verdict.counts
    assert any("kernel" in run.title for run in made.after.attacks)


def test_its_sites_are_found_and_what_it_is_stays_as_it_was():
    net = by_hand(1.0)
    assert [site.own for site in ra.sites(net, also=("jumprelu",))] == [Ramp(kappa=1.0)] * 4
    x = ra.data("mnist[:8]").images
    with torch.no_grad():
        assert torch.equal(net(x), ra.retrofit(ra.load("lenet-mnist"), ra.JumpReLU(1.0))(x))


def test_every_report_names_the_kinds_that_a_retrofit_left(tmp_path):
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc1, self.fc2, self.out = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.gelu(self.fc2(F.gelu(F.relu(self.fc1(x.flatten(1)))))))

    net = ra.Classifier(Mixed(), shape=(1, 8, 8))
    x = ra.data("digits[:40]").images
    with torch.no_grad():
        net.module.out.bias -= net(x).median(0).values
        data = ra.Images.of(x, net(x).argmax(1))
    made = ra.audit(net, "JumpReLU(0.1)", data, EPS, battery=BRIEF)
    assert made.numbers().pedigree.left_alone == {"gelu": 2}
    for name in ("audit.html", "audit.md", "audit.json"):
        ra.report(made, tmp_path / name)
    assert "leaves 2 gelu as they are" in (tmp_path / "audit.html").read_text()
    assert "leaves 2 gelu as they are" in (tmp_path / "audit.md").read_text()
    record = ra.evaluate(ra.retrofit(net, "JumpReLU(0.1)"), data, ra.FGSM(), EPS)
    assert record.pedigree["left_alone"] == {"gelu": 2}


def test_kernels_of_a_jump_of_its_own_have_something_to_fall_back_on(monkeypatch):
    """Where the form that attacks run on differs at their last point, the kernels of the dressed
    form are climbed again, not those of a network that has none."""
    seen = []

    def differs(crafted, on, *others):
        seen.append(on.form)
        return torch.arange(len(crafted[0].outcome.x_adv))[:3]

    monkeypatch.setattr("retroact.evaluation.proof._find_differing", differs)
    made = ra.audit(by_hand(0.0), by_hand(1.0), "mnist[:12]", EPS, battery=BRIEF)
    assert made.after.kernel and seen
