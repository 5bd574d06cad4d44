"""An activation of one's own is one class in one file: it is retrofitted, saved, folded, smoothed
and audited as those of the package are."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retroact as ra
from retroact.activations.activation import Activation
from retroact.activations.files import embed, embedded
from retroact.activations.piecewise import Piecewise
from retroact.activations.ramp import FiniteAtLeast0, FinitePositive, Ramp
from retroact.activations.site import Site
from retroact.activations.surrogate import Surrogate
from retroact.auditing.battery import Battery
from retroact.retrofitting.folding import FoldError
from retroact.retrofitting.installed import installed
from retroact.spec import SpecError, spec


@spec
class Squareplus(Activation):
    """(z + sqrt(z² + b)) / 2 (Barron 2021): smooth, and nothing said but the formula."""

    b: FinitePositive = 4.0

    def __call__(self, z: Tensor) -> Tensor:
        return (z + torch.sqrt(z * z + self.b)) / 2


@spec
class SteepJump(Piecewise):
    """2 z 1[z > kappa]: one of the family, by its ramp."""

    kappa: FiniteAtLeast0 = 0.0
    grid: ClassVar[tuple[float, ...]] = (0.0, 0.3)

    @property
    def ramp(self) -> Ramp:
        return Ramp(alpha=2.0, kappa=self.kappa)

    def __call__(self, z: Tensor) -> Tensor:
        return 2.0 * F.threshold(z, self.kappa, 0.0)


@spec
class Rounded(Activation):
    """round(max(0, z)): jumps, and does not say how its derivative is smoothed."""

    jump: ClassVar[bool] = True

    def __call__(self, z: Tensor) -> Tensor:
        return z.relu().round()


@spec
class OwnShift(Activation):
    """ReLU(z + b), b in a file of one's own that travels with the network."""

    sha256: str = ""

    def at(self, site: Site) -> nn.Module:
        content = embedded(self.sha256)
        assert content is not None
        return Shift(float(content.decode()))

    def files(self) -> dict[str, bytes]:
        content = embedded(self.sha256)
        assert content is not None
        return {self.sha256: content}

    def __call__(self, z: Tensor) -> Tensor:
        raise TypeError("differs from site to site")


class Shift(nn.Module):
    """A plain module is installed as it is."""

    def __init__(self, b: float) -> None:
        super().__init__()
        self.b = b

    def forward(self, z: Tensor) -> Tensor:
        return (z + self.b).relu()


LITTLE = Battery(
    steps=4,
    targets=2,
    targeted_steps=4,
    finish=4,
    alarmed_finish=4,
    sample=8,
    points=20,
    trial_steps=0,
    queries=0,
)


def digits(n: int = 60) -> ra.Images:
    return ra.data(f"digits/validation[:{n}]")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return ra.load("digits-cnn")


@pytest.mark.parametrize("text", ["Squareplus(1.0)", "SteepJump(0.3)", "Rounded"])
def test_it_is_named_installed_saved_and_read_again(net, text: str, tmp_path) -> None:
    hard = ra.retrofit(net, text)
    activation = hard.retrofit.activation
    assert [m.activation for m in installed(hard).values()] == [activation] * 3
    again = ra.load(ra.save(hard, tmp_path / "hard.safetensors"))
    x = digits().images
    assert torch.equal(again(x), hard(x)) and again.retrofit == hard.retrofit
    assert not torch.allclose(hard(x), net(x))


def test_a_process_that_does_not_know_it_is_told_what_to_import(net, tmp_path) -> None:
    (tmp_path / "mine.py").write_text(
        "import retroact as ra, torch\nfrom retroact.spec import spec\n"
        "@spec\nclass Doubled(ra.Activation):\n"
        "    'max(0, 2 z).'\n    def __call__(self, z): return (2 * z).relu()\n"
    )
    code = (
        "import mine, retroact as ra\n"
        "ra.save(ra.retrofit('digits-cnn', mine.Doubled()), 'hard.safetensors')"
    )
    assert _run(code, tmp_path).returncode == 0
    code = (
        "import retroact as ra\n"
        "try: ra.load('hard.safetensors')\n"
        "except ValueError as e: print(type(e).__name__, e)\n"
        "import mine; ra.load('hard.safetensors')"
    )
    made = _run(code, tmp_path)
    assert "CheckpointError" in made.stdout and "import its module first" in made.stdout
    assert made.stderr == ""


def _run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


def test_its_files_travel_with_the_network(net, tmp_path, monkeypatch) -> None:
    name = hashlib.sha256(b"0.25").hexdigest()
    embed(b"0.25", name)
    hard = ra.retrofit(net, OwnShift(name))
    file, expected = ra.save(hard, tmp_path / "hard.safetensors"), hard(digits().images)
    monkeypatch.setattr("retroact.activations.files._EMBEDDED", {})
    assert torch.equal(ra.load(file)(digits().images), expected)
    with pytest.raises(SpecError, match="has been changed"):
        embed(b"0.5", name)


def test_one_of_the_family_folds_and_the_others_say_that_they_do_not(net) -> None:
    x = digits().images.double()
    hard = ra.retrofit(net.double(), SteepJump(0.3))
    folded = ra.fold(hard, scaled=False)
    assert folded.logit_scale == 8.0
    assert torch.allclose(8.0 * folded(x), hard(x), rtol=1e-9)
    with pytest.raises(FoldError, match="cannot be moved through"):
        ra.fold(ra.retrofit(net, ra.PerSite((ra.SReLU(2.0), Squareplus(), Squareplus()))))
    alone = ra.retrofit(net, Squareplus())
    assert torch.equal(ra.fold(alone)(x), alone(x)), "without slopes there is nothing to move"
    net.float()


def test_its_jump_is_smoothed_where_its_place_is_known() -> None:
    assert SteepJump(0.5).jump and not SteepJump(0.0).jump
    assert SteepJump(0.5).smoothed(4.0) == Surrogate(SteepJump(0.5), 8.0)
    assert Squareplus().surrogate(8.0) == Squareplus() == Squareplus().smoothed(8.0)
    with pytest.raises(SpecError, match=r"Rounded\(\) jumps and does not say how .* surrogate="):
        Rounded().surrogate(8.0)


def test_it_is_audited(net) -> None:
    quick = ra.audit(net, "SteepJump(0.3)", digits(20), "Linf(0.1)", battery=LITTLE)
    assert quick.after.kernel.startswith("sigmoid kernel")
    assert quick.names.after.endswith("SteepJump(kappa=0.3)")
    smooth = ra.audit(net, Squareplus(0.5), digits(20), "Linf(0.1)", battery=LITTLE)
    assert smooth.after.kernel == ""


def test_a_jump_of_an_unknown_place_is_audited_with_a_surrogate_of_ones_own(net) -> None:
    hard, smooth = ra.retrofit(net, Rounded()), ra.retrofit(net, ra.ReLU())
    alone = ra.audit(net, hard, digits(), "Linf(0.1)", battery="quick")
    assert alone.after.kernel.startswith("difference quotient") and alone.verdict.masked
    assert alone.verdict.effect != "GENUINE"
    made = ra.audit(net, hard, digits(20), "Linf(0.1)", battery=LITTLE, surrogate=smooth)
    assert any(a.kernel == "your surrogate" for a in made.after.attacks)


def test_it_is_tuned(net) -> None:
    tuned = ra.tune(net, SteepJump, digits(20), "Linf(0.1)")
    assert [p.knob for p in tuned.points] == [0.0, 0.3]


def test_a_function_that_is_no_activation_is_refused(net) -> None:
    @spec
    class Duck:
        """Has all the words of an activation, and does not say that it is one."""

        neutral: ClassVar[None] = None
        jump: ClassVar[bool] = False

        def at(self, site: Site) -> Duck:
            return self

        def surrogate(self, beta: float) -> Duck:
            return self

        def __call__(self, z: Tensor) -> Tensor:
            return z

    with pytest.raises(SpecError, match=r"Duck\(\) .* one of your own, which inherits Activation"):
        ra.retrofit(net, Duck())
