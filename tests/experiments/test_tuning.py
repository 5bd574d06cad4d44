"""tune: validation data only, verified beside claimed, and a recommendation that follows from the
curve."""

import pytest

import retroact as ra
from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import JumpReLU, SReLU
from retroact.activations.smooth import Tanh
from retroact.attacks.pgd import PGD
from retroact.checkpoint import load
from retroact.crafting.threat import Linf
from retroact.experiments.tuning import Point, Tuning, tune
from retroact.nets.data import data


@pytest.fixture(scope="module")
def net():
    return load("digits-cnn")


def curve(*rows: tuple[float, float, float, float]) -> Tuning:
    points = tuple(
        Point(JumpReLU(k), k, clean, claimed, verified) for k, clean, claimed, verified in rows
    )
    return Tuning(points, "kappa", 0.98, "val", "Linf(eps=0.1)", 100)


def test_the_recommendation_has_the_best_verified_accuracy_that_is_affordable():
    tuned = curve(
        (0.0, 1.0, 0.5, 0.40), (0.5, 0.99, 0.6, 0.45), (1.0, 0.98, 0.9, 0.42), (1.5, 0.9, 0.9, 0.6)
    )
    assert tuned.activation == JumpReLU(0.5)
    assert tuned.largest.activation == JumpReLU(1.0)
    assert tuned.gain == pytest.approx(0.05)


def test_what_only_claims_is_not_recommended():
    tuned = curve((0.0, 1.0, 0.5, 0.4), (1.0, 1.0, 0.9, 0.4), (1.5, 1.0, 0.95, 0.3))
    assert tuned.activation == JumpReLU(0.0) and tuned.gain == 0
    assert "(+0.0 points over the plain network" in str(tuned)


def test_the_curve_starts_at_the_plain_network_and_verified_is_never_above_claimed(net):
    tuned = tune(net, JumpReLU, data("digits/validation[:100]"), Linf(0.1), grid=[1.0, 0.5])
    assert [p.knob for p in tuned.points] == [0.0, 1.0, 0.5]
    assert all(p.verified <= p.claimed <= p.clean for p in tuned.points)
    assert tuned.data == "digits/validation[:100]" and tuned.n == 100


def test_a_slope_claims_and_does_not_hold(net):
    plain, steep = tune(net, SReLU, data("digits/validation[:100]"), Linf(0.1), grid=[100.0]).points
    assert steep.claimed > plain.claimed + 0.15
    assert steep.verified < plain.verified + 0.05


@pytest.mark.parametrize("text", ["digits", "digits[:50]"])
def test_test_data_is_refused(net, text):
    with pytest.raises(
        ValueError, match="is test data, and nothing is tuned on it.*digits/validation"
    ):
        tune(net, JumpReLU, data(text), Linf(0.1))


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (PGD, {}, "activation class with a number to tune"),
        (Tanh, {}, "activation class with a number to tune"),
        (JumpReLU(0.5), {}, "activation class with a number to tune"),
        (PerSite, {}, "give grid="),
        (JumpReLU, {"keep": 0.0}, r"keep in \(0, 1\]"),
        (JumpReLU, {"keep": 1.5}, r"keep in \(0, 1\]"),
        (JumpReLU, {"grid": [-1.0]}, "at least 0"),
        (JumpReLU, {"grid": []}, "give grid="),
    ],
)
def test_what_cannot_be_tuned_is_refused(net, kind, options, says):
    with pytest.raises(ValueError, match=says):
        tune(net, kind, data("digits/validation[:10]"), Linf(0.1), **options)


def test_one_with_measured_numbers_keeps_them(net):
    made = ra.calibrate(net, "MeanSparse(0.2)", "digits/train[:200]")
    tuned = tune(net, made, data("digits/validation[:30]"), Linf(0.1), grid=[0.4])
    assert [p.knob for p in tuned.points] == [0.0, 0.4]
    assert all(p.activation.sha256 == made.sha256 for p in tuned.points)
    plain = tune(net, JumpReLU, data("digits/validation[:30]"), Linf(0.1), grid=[0.0])
    assert tuned.points[0].claimed == plain.points[0].claimed, "alpha = 0 is the plain network"
    with pytest.raises(ValueError, match="MeanSparse.* has no means yet"):
        tune(net, "MeanSparse", data("digits/validation[:30]"), Linf(0.1))
