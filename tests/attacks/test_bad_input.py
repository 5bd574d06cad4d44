"""What an attack does with what it cannot use: an error that names the cure, or a flag on the
record."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import retroact as ra
from retroact.crafting.attack import Attack
from retroact.crafting.driver import craft, craft_all
from retroact.crafting.oracle import AccessError, Oracle
from retroact.evaluation.metrics import nonfinite_share, success_rate, zero_gradient_share
from retroact.spec import SpecError, known, parse

NAN, INF = float("nan"), float("inf")


class Few(NamedTuple):
    """Labelled images without the checks of `Images`: whoever writes a data set of his own may have
    none."""

    images: Tensor
    labels: Tensor
    index: Tensor
    name: str = "few"


def network(classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.ReLU(), nn.Linear(16, classes)
    ).eval()


def few(net: Callable[[Tensor], Tensor], n: int = 6, **change: Tensor) -> Few:
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return Few(x, net(x).argmax(1), torch.arange(n))._replace(**change)


def crafted(attack: Any, net: Any, data: Few, threat: Any, goal: Any = None) -> Any:
    return craft(attack, net, data.images, data.labels, data.index, threat, goal)


# ----------------------------------------------------------------------------------------- radii


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Linf(0)", "greater than 0"),
        ("Linf(-0.1)", "greater than 0"),
        ("Linf(2)", "at most 1"),
        ("Linf(1e999)", "at most 1"),
        ("Linf(eps='8/0')", "a fraction"),
        ("Linf(True)", "a fraction"),
        ("L2(0)", "greater than 0"),
        ("L2(-1)", "greater than 0"),
        ("L2('nan')", "got NaN"),
        ("Linf(0.1, access='oracle')", "unknown choice"),
        ("PGD(relative_step=0)", "greater than 0"),
        ("PGD(loss='hinge')", "unknown choice"),
        ("PGD(loss='away_from')", "did you mean away_from_true?"),
        ("PDG(steps=3)", "did you mean PGD(steps=3)?"),
        ("Targeted(-1)", "at least 0"),
    ],
)
def test_bad_specs_are_refused(text, says):
    with pytest.raises(SpecError) as error:
        parse(text)
    assert says in str(error.value)


def counts() -> list[tuple[type, str]]:
    """Every field of every attack that counts something: steps, restarts, queries, repeats,
    draws."""
    attacks = [cls for cls in known(Attack) if cls.__module__.startswith("retroact.")]
    return [(c, f.name) for c in attacks for f in dataclasses.fields(c) if f.type == "Count"]


@pytest.mark.parametrize(
    ("attack", "field"), counts(), ids=lambda v: v if isinstance(v, str) else v.__name__
)
@pytest.mark.parametrize("value", [0, -1])
def test_no_attack_takes_fewer_than_one_step(attack, field, value):
    with pytest.raises(
        SpecError, match=rf"{attack.__name__}.{field}: expected a number at least 1, got {value}"
    ):
        attack(**{field: value})


def test_the_counts_are_those_of_all_iterative_attacks():
    assert {c.__name__ for c, _ in counts()} >= {
        "PGD",
        "APGD",
        "BIM",
        "Square",
        "DeepFool",
        "DDN",
        "FMN",
        "StepLL",
    }
    assert {f for _, f in counts()} >= {
        "steps",
        "restarts",
        "queries",
        "repeats",
        "draws",
        "search_steps",
    }


def test_a_budget_attack_refuses_a_radius_beyond_the_diagonal_of_the_box():
    net = network()
    data, diagonal = few(net), math.sqrt(3 * 8 * 8)
    crafted(ra.PGD(steps=1), net, data, ra.L2(diagonal))
    for eps in (14.0, 100.0, INF):
        with pytest.raises(
            ValueError, match=r"at most 13.86, the diagonal .* for images \(3, 8, 8\), got .*by 255"
        ):
            crafted(ra.PGD(steps=1), net, data, ra.L2(eps))
    with pytest.raises(ValueError, match="at most 13.86"):
        craft_all(ra.FGM(), net, data.images, data.labels, data.index, [ra.L2(0.5), ra.L2(14.0)])
    with pytest.raises(ValueError, match="at most 13.86"):
        ra.evaluate(net, data, ra.Square(queries=2), ra.L2(14.0))


def test_a_huge_radius_means_no_limit_to_a_minimum_norm_attack():
    net = network()
    data = few(net)
    made = [crafted(ra.DeepFool(steps=20), net, data, ra.L2(eps)).x_adv for eps in (100.0, INF)]
    assert torch.equal(*made) and bool((net(made[0]).argmax(1) != data.labels).all())


# ------------------------------------------------------------------------------------ access, norms


def test_access_is_refused_and_the_cure_named():
    net = network()
    data = few(net)
    for access in ("score", "decision"):
        with pytest.raises(
            ValueError, match=f'needs gradient access, got .*{access}.*; give access="gradient"'
        ):
            crafted(ra.PGD(), net, data, ra.Linf(0.1, access=access))
    with pytest.raises(ValueError, match='needs score access.*give access="score" or choose'):
        crafted(ra.Square(queries=2), net, data, ra.Linf(0.1, access="decision"))
    oracle, rows = Oracle(net, 2, access="decision"), torch.arange(2)
    with pytest.raises(AccessError, match="needs score access, the threat model grants decision"):
        oracle.logits(data.images[:2], rows)
    assert oracle.decisions(data.images[:2], rows).shape == (2,) and oracle.queries.tolist() == [
        1,
        1,
    ]


def test_a_foreign_norm_and_mixed_threats_are_refused():
    net = network()
    data = few(net)
    strange = type("L7", (), {"norm": "l7", "eps": 1.0, "access": "gradient"})()
    with pytest.raises(ValueError, match="serves the norms linf, got .*; choose another"):
        crafted(ra.RFGSM(), net, data, strange)
    with pytest.raises(ValueError, match="serves the norms l2"):
        crafted(ra.DDN(), net, data, ra.Linf(0.1))
    with pytest.raises(ValueError, match="threats of one norm and access"):
        craft_all(ra.FGSM(), net, data.images, data.labels, data.index, [ra.Linf(0.1), ra.L2(0.1)])


# ---------------------------------------------------------------------- networks without a gradient


class Detached(nn.Module):
    """Gives logits that remember nothing of the pixels."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = network(), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "numpy":
            return torch.from_numpy(self.inner(x.detach()).detach().numpy())
        if self.how == "one-hot":
            return nn.functional.one_hot(self.inner(x).argmax(1), 5) * 9
        return self.inner(x).detach()


@pytest.mark.parametrize("how", ["detach", "numpy", "one-hot"])
def test_a_network_without_gradients_is_told_apart_and_serves_other_attacks(how):
    net = Detached(how)
    data = few(net)
    for attack in (ra.PGD(steps=2), ra.FGSM()):
        with pytest.raises(
            AccessError, match="gives no gradient .* use an attack on scores or decisions, or pass"
        ):
            ra.evaluate(net, data, attack, ra.Linf(0.1))
    blind = ra.Linf(0.5, access="decision")
    record = ra.evaluate(net, data, ra.AdditiveUniformNoise(repeats=20), blind)
    assert success_rate(record) > 0 and not record.gradients.any()
    # the cure that the error names
    helped = ra.evaluate(net, data, ra.PGD(steps=5), ra.Linf(0.3), source=net.inner)
    assert success_rate(helped) == 1.0


def test_a_network_that_rounds_has_dead_gradients_and_the_record_says_so():
    net = network()
    rounded = lambda x: (net(x) * 8).round()  # noqa: E731
    record = ra.evaluate(rounded, few(rounded), ra.PGD(steps=3, random_start=False), ra.Linf(0.1))
    assert zero_gradient_share(record) == 1.0 and record.gradients.tolist() == [3] * 6
    assert success_rate(record) == 0.0


# -------------------------------------------------------------------------------------- few classes


def test_dlr_refuses_too_few_classes_and_the_cure_it_names_works():
    for classes, goal, needs in ((2, ra.Untargeted(), 3), (3, ra.LeastLikely(), 4)):
        net = network(classes)
        for attack in (
            ra.PGD(steps=2, loss="dlr"),
            ra.APGD(steps=2, loss="dlr"),
            ra.FGSM(loss="dlr"),
        ):
            with pytest.raises(
                ValueError, match=f'at least {needs} classes, got {classes}; use loss="margin"'
            ):
                crafted(attack, net, few(net), ra.Linf(0.1), goal)
        crafted(ra.PGD(steps=2, loss="margin"), net, few(net), ra.Linf(0.1), goal)


@pytest.mark.parametrize(
    "attack", [ra.PGD(steps=20), ra.DeepFool(), ra.Square(queries=200), ra.FGSM()], ids=str
)
def test_a_binary_classifier_is_served(attack):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    record = ra.evaluate(net, few(net), attack, ra.Linf(0.5))
    assert success_rate(record) == 1.0


# ------------------------------------------------------------------------------------------ targets


def test_a_target_beyond_the_classes_is_refused():
    net = network()
    with pytest.raises(ValueError, match="expected a class from 0 to 4, got 5"):
        crafted(ra.PGD(steps=1), net, few(net), ra.Linf(0.1), ra.Targeted(5))


def test_examples_of_the_target_class_are_not_eligible():
    net = network()
    data = few(net, 40)
    target = int(data.labels.mode().values)
    own = (data.labels == target).numpy()
    record = ra.evaluate(net, data, ra.PGD(steps=10), ra.Linf(0.3), goal=ra.Targeted(target))
    assert 0 < own.sum() < 40 and not record.distance[own].any() and not record.gradients[own].any()
    assert success_rate(record) == pytest.approx((record.adversarial == target)[~own].mean())


def test_to_be_led_to_its_own_class_is_no_success():
    net = network()
    data = few(net)
    wrong = (data.labels + 1) % 5
    # images of class `label`, all decided otherwise, led to that class
    for label in wrong.unique().tolist():
        rows = wrong == label
        images = Few(data.images[rows], wrong[rows], data.index[rows])
        record = ra.evaluate(net, images, ra.PGD(steps=40), ra.Linf(0.5), goal=ra.Targeted(label))
        assert bool((record.clean != label).all()) and bool((record.adversarial == label).any())
        assert math.isnan(success_rate(record))


def test_where_all_are_of_the_target_class_there_is_no_rate_rather_than_a_zero():
    net = network()
    data = few(net, 40)
    rows = data.labels == int(data.labels.mode().values)
    all_of_it = Few(data.images[rows], data.labels[rows], data.index[rows])
    record = ra.evaluate(
        net, all_of_it, ra.PGD(steps=5), ra.Linf(0.3), goal=ra.Targeted(int(all_of_it.labels[0]))
    )
    assert math.isnan(success_rate(record)) and set(record.queries.tolist()) == {1}
    assert not record.distance.any() and not record.gradients.any()


# --------------------------------------------------------------------------------- NaN and infinity


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "attack", [ra.PGD(steps=3), ra.DeepFool(), ra.Square(queries=5), ra.Contrast()], ids=str
)
def test_a_network_that_is_broken_on_all_images_is_flagged_and_never_attacked(attack, value):
    net = network()
    broken = lambda x: net(x) * 0 + value  # noqa: E731
    record = ra.evaluate(broken, few(net), attack, ra.Linf(0.3))
    assert nonfinite_share(record) == 1.0 and set(record.clean.tolist()) == set(
        record.adversarial.tolist()
    ) == {-1}
    assert ra.clean_accuracy(record) == ra.robust_accuracy(record) == 0.0 and math.isnan(
        success_rate(record)
    )
    assert set(record.queries.tolist()) == {1} and not record.distance.any()


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_network_that_is_broken_on_some_images_is_attacked_on_the_others(value):
    net = network()
    data = few(net)
    data.images[::2, 0, 0, 0] = 0.0
    data = data._replace(labels=net(data.images).argmax(1))
    partly = lambda x: net(x).where(x[:, 0, 0, :1] > 0, value)  # noqa: E731
    record = ra.evaluate(partly, data, ra.PGD(steps=10, random_start=False), ra.Linf(0.004))
    whole = ra.evaluate(net, data, ra.PGD(steps=10, random_start=False), ra.Linf(0.004))
    assert record.nonfinite.tolist() == [True, False] * 3 and record.clean.tolist()[::2] == [-1] * 3
    assert record.adversarial[1::2].tolist() == whole.adversarial[1::2].tolist()
    assert ra.clean_accuracy(record) == 0.5


@pytest.mark.parametrize(
    ("front", "pixel"),
    [
        (lambda x: x.pow(1 / 1.5), 1.0),  # an infinite slope where a pixel is black
        (lambda x: x.sqrt().square(), 0.0),  # and one that is no number
    ],
)
def test_a_gradient_without_a_number_in_one_pixel_counts_in_the_others(front, pixel):
    weights = torch.linspace(1, 2, 12).view(12, 1) * torch.tensor([[1.0, -1.0]])
    net = lambda x: front(x).flatten(1) @ weights  # noqa: E731
    x, y = torch.full((2, 3, 2, 2), 0.5), torch.tensor([0, 0])
    x[0, 0, 0, 0] = 0.0
    oracle = Oracle(net, 2)
    _, gradient = oracle.gradient(x, torch.arange(2), lambda logits: logits[:, 0])
    rest = gradient.flatten(1)[:, 1:]
    assert torch.equal(rest[0], rest[1]) and (rest > 0).all()
    assert float(gradient[0, 0, 0, 0]) == pixel * float(rest.max())
    assert oracle.nonfinite.tolist() == [True, False]
    made = ra.craft(ra.FGSM(), net, x, y, torch.arange(2), ra.Linf(0.1))
    assert (made.x_adv[1] < x[1]).all() and (made.x_adv[0].flatten()[1:] < 0.5).all()


def test_points_around_an_example_are_in_the_box_where_there_is_nothing_outside_it():
    net = network()
    data = few(net, 20)
    data.images[:, :, :4] = 0.0  # black, so that half of what is drawn around it lies outside
    data = data._replace(labels=net(data.images).argmax(1))
    only_inside = lambda x: net(x.where((x >= 0) & (x <= 1), NAN))  # noqa: E731
    attack = ra.Momentum(steps=30, noise=1.0)
    for some in (only_inside, net):
        record = ra.evaluate(some, data, attack, ra.Linf(0.1))
        assert not record.nonfinite.any() and success_rate(record) > 0.5
    here, there = (crafted(attack, n, data, ra.Linf(0.1)) for n in (only_inside, net))
    assert not torch.equal(here.x_adv, there.x_adv)  # a network with numbers there is as ever
    for name in ("queries", "gradients"):
        assert getattr(here, name)[0] == getattr(there, name)[0] > 0


def test_a_gradient_without_any_number_is_zero():
    net = lambda x: (0 * x.flatten(1)[:, :2]).sqrt()  # noqa: E731
    oracle = Oracle(net, 2)
    _, gradient = oracle.gradient(torch.rand(2, 3, 2, 2), torch.arange(2), lambda z: z[:, 0])
    assert not gradient.any() and oracle.nonfinite.all()


# -------------------------------------------------------------------------------- images and labels


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"images": torch.rand(6, 3, 8, 8) * 255},
            r"expected pixels in \[0,1\], got .*; divide by 255",
        ),
        (
            {"images": torch.rand(6, 3, 8, 8) * 2 - 1},
            r"expected pixels in \[0,1\], got .*\(x \+ 1\) / 2",
        ),
        (
            {"images": torch.full((6, 3, 8, 8), NAN)},
            "expected finite pixels, got NaN or infinity; look for",
        ),
        (
            {"images": torch.full((6, 3, 8, 8), INF)},
            "expected finite pixels, got NaN or infinity; look for",
        ),
        (
            {"images": torch.zeros(6, 3, 8, 8).byte()},
            r"float images .*, got torch.uint8; use images.float\(\)",
        ),
        (
            {"images": torch.zeros(6, 3, 8, 8).long()},
            r"float images .*, got torch.int64; use images.float\(\)",
        ),
        (
            {"images": torch.rand(3, 8, 8)},
            r"expected images \(n, c, h, w\), got shape \(3, 8, 8\); one image needs",
        ),
        (
            {"images": torch.rand(0, 3, 8, 8)},
            r"expected at least one image, got shape \(0, 3, 8, 8\)",
        ),
        (
            {"labels": torch.full((6,), 5)},
            "expected labels at least 0 and below 5, got 5 to 5; they count from 1",
        ),
        (
            {"labels": torch.full((6,), -1)},
            "expected labels at least 0, got -1 to -1; check the order",
        ),
        (
            {"labels": torch.zeros(6)},
            r"expected labels as an int64 tensor, got torch.float32; use .*long\(\)",
        ),
        (
            {"labels": torch.zeros(5).long()},
            r"expected one label per image, shape \(6,\), got \(5,\)",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_images_and_labels_are_refused_before_any_work(change, says):
    asked = []

    def net(x: Tensor) -> Tensor:
        asked.append(len(x))
        return x.flatten(1)[:, :5]

    with pytest.raises((ValueError, TypeError), match=says):
        ra.evaluate(net, few(network(), **change), ra.PGD(steps=1), ra.Linf(0.1))
    assert len(asked) <= 1  # the number of classes is known from the first look alone


def test_a_wrong_channel_count_is_refused_by_the_classifier():
    net = ra.Classifier(network(), shape=(3, 8, 8))
    for images, says in (
        (
            torch.rand(6, 1, 8, 8),
            r"expected images of shape \(3, 8, 8\), got \(1, 8, 8\); resize them or choose",
        ),
        (torch.rand(6, 8, 8, 3), r"expected images of shape \(3, 8, 8\), got \(8, 8, 3\); permute"),
    ):
        data = few(network(), images=images)
        with pytest.raises(ValueError, match=says):
            ra.evaluate(net, data, ra.PGD(steps=1), ra.Linf(0.1))
        with pytest.raises(ValueError, match=says):
            crafted(ra.PGD(steps=1), net, data, ra.Linf(0.1))


def test_an_empty_batch_is_refused():
    net = network()
    data = few(net)
    with pytest.raises(ValueError, match="at least one example, .* got n=0"):
        crafted(ra.PGD(), net, Few(*(part[:0] for part in data[:3])), ra.Linf(0.1))
    with pytest.raises(ValueError, match="at least one threat, got n=6, .* 0 threats"):
        craft_all(ra.PGD(), net, data.images, data.labels, data.index, [])
    with pytest.raises(ValueError, match="chunk: expected a whole number of at least 1, got 0"):
        craft(ra.PGD(), net, data.images, data.labels, data.index, ra.Linf(0.1), chunk=0)


# ------------------------------------------------------------------------------------------ devices


def test_a_network_on_two_devices_is_refused():
    net = network()
    net[3].to("meta")
    data, says = few(network()), r"one device, got \['cpu', 'meta'\]; call net.to\(device\) first"
    with pytest.raises(ValueError, match=says):
        ra.evaluate(net, data, ra.PGD(steps=1), ra.Linf(0.1))
    with pytest.raises(ValueError, match=says):
        crafted(ra.PGD(steps=1), net, data, ra.Linf(0.1))


def test_images_are_moved_to_the_networks_device():
    net, seen = network(), []

    class There(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, device="meta"))

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.device.type)
            raise RuntimeError("meta tensors hold no numbers")

    with pytest.raises(RuntimeError, match="hold no numbers"):
        crafted(ra.PGD(steps=1), There(), few(net), ra.Linf(0.1))
    assert seen == ["meta"]
