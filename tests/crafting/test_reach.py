"""What a monotone front end can give within a cube is the box between its corners, and what
withstands the box withstands the cube."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retroact as ra
from retroact.crafting.domain import Domain
from retroact.crafting.reach import Reach, find_reaches, withstand

EPS = ra.Linf(0.1)


class Front(nn.Module):
    def __init__(self, net, change):
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.change(x))


def by_numpy(x):
    return torch.from_numpy(np.floor(x.detach().numpy() * 3.999) / 3).to(x)


def median(x):
    windows = F.unfold(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3).view(len(x), 9, -1)
    return windows.median(1).values.view_as(x)


def sharpened(x):
    kernel = torch.tensor([[0.0, -1, 0], [-1, 5, -1], [0, -1, 0]])[None, None]
    return F.conv2d(x, kernel, padding=1)


def smoothed(x):  # a low pass with small lobes: random points stay within its corners' box
    kernel = torch.full((1, 1, 5, 5), -0.01)
    kernel[..., 1:4, 1:4] = (1 + 0.16) / 9
    return F.conv2d(x, kernel, padding=2)


def on_bytes(x):
    return bool(((255 * x).round() / 255 == x).all())


MONOTONE = {
    "rounded": lambda x: (4 * x).round() / 4,
    "detached": lambda x: ((4 * x).round() / 4).detach(),
    "numpy": by_numpy,
    "median": median,
    "negative": lambda x: (1 - x).square(),
    "once for all": lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
}
OTHERS = {
    "sharpened": sharpened,
    "smoothed": smoothed,
    "sine": lambda x: x + 0.3 * (30 * x).sin(),
    "other on bytes": lambda x: x if on_bytes(x) else (x > 0.5).float(),
    "standardised": lambda x: (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True),
}


def digits(n=12):
    return ra.data(f"digits[:{n}]")


def net():
    return ra.load("digits-cnn")


def reaches(network, threat=EPS, data=None) -> list[Reach]:
    data = data or digits()
    domain = Domain(tuple(data.images.shape[1:]))
    return list(find_reaches(network, data.images, data.index, threat, domain))


@pytest.mark.parametrize("change", MONOTONE.values(), ids=MONOTONE)
def test_a_monotone_front_end_gives_nothing_outside_the_box(change):
    data, network = digits(), Front(net(), change)
    first = reaches(network)[0]
    assert first.behind.place == ("net",)
    torch.testing.assert_close(first.at, change(data.images))
    for seed in range(5):
        drawn = torch.rand(data.images.shape, generator=torch.Generator().manual_seed(seed))
        x = (data.images + 0.2 * drawn.round() - 0.1).clamp(0, 1)
        u = change(x)
        assert bool(((u >= first.low - 1e-5) & (u <= first.high + 1e-5)).all())
        torch.testing.assert_close(first.behind(u), network(x))


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_one_that_is_not_monotone_has_no_box(change):
    assert reaches(Front(net(), change)) == []


def test_the_first_place_of_a_classifier_is_behind_its_normalisation():
    mean, std = 0.3, 0.2
    classifier = ra.Classifier(net().module, mean, std, shape=(1, 8, 8))
    first = reaches(classifier)[0]
    assert first.behind.place == ("module",)
    assert first.radius == pytest.approx(EPS.eps / std, rel=1e-4)


def test_a_network_that_sees_the_image_another_way_too_has_no_box():
    class Beside(Front):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x.mean((1, 2, 3))[:, None] * torch.arange(10)

    assert reaches(Beside(net(), MONOTONE["rounded"])) == []


def test_another_norm_or_no_module_has_no_box():
    network = Front(net(), MONOTONE["rounded"])
    assert reaches(network, ra.L2(0.5)) == [] and reaches(lambda x: network(x)) == []


@pytest.mark.parametrize("levels", [2, 3, 8])
def test_what_withstands_the_box_withstands_every_point_of_the_cube(levels):
    torch.manual_seed(levels)
    inner = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 3))
    network = Front(inner, lambda x: ((levels * x).round() / levels).detach())
    x, eps = torch.rand(60, 2), 0.08
    y, index = network(x).argmax(1), torch.arange(60)
    reach = next(find_reaches(network, x, index, ra.Linf(eps), Domain((2,))))
    held = withstand(reach, y, index)
    steps = torch.cartesian_prod(*[torch.linspace(-eps, eps, 41)] * 2)
    cube = (x[:, None] + steps).clamp(0, 1)
    truly = (network(cube.flatten(0, 1)).argmax(1).view(60, -1) == y[:, None]).all(1)
    assert bool((truly | ~held).all())
    assert int(held.sum()) > 0 and int((truly & ~held).sum()) <= 0.3 * int(truly.sum())


def test_what_is_climbed_is_found_where_it_is():
    """Of a plain network behind an identity that cuts the graph, as much stands as under PGD."""
    data = digits(60)
    network = Front(net(), lambda x: x.detach() * 1.0 + 1e-3)
    reach = reaches(network, data=data)[0]
    held = withstand(reach, data.labels, data.index)
    plain = ra.evaluate(net(), data, ra.APGD(loss="margin"), EPS)
    assert abs(float(held.float().mean()) - ra.robust_accuracy(plain)) < 0.05


def test_what_is_no_number_is_not_held():
    class Nan(nn.Module):
        def forward(self, u: Tensor) -> Tensor:
            return torch.where(u < 0.45, torch.nan, 0.0) + torch.tensor([1.0, 0.0]) * u

    at = torch.full((3, 1), 0.5)
    reach = Reach(Nan(), at, at - 0.1, at + 0.1)
    assert not withstand(reach, torch.zeros(3).long(), torch.arange(3)).any()
    far = Reach(Nan(), at + 0.3, at + 0.2, at + 0.4)
    assert withstand(far, torch.zeros(3).long(), torch.arange(3)).all()
