"""Known answers of the pixel search: networks of which it is known which pixels turn them."""

import itertools

import torch
from torch import nn

import retroact as ra
from retroact.attacks import pixel_search
from retroact.attacks.pixel_search import PixelSearch
from retroact.crafting.domain import Domain
from retroact.crafting.driver import craft
from retroact.crafting.threat import L2

FAR = L2(1000.0)


class Weighed(nn.Module):
    """Class 1 where Σ w x exceeds the threshold of the example's kind."""

    def __init__(self, weights, threshold):
        super().__init__()
        self.weights, self.threshold = weights, threshold

    def forward(self, x):
        z = (x * self.weights).flatten(1).sum(1) - self.threshold
        return torch.stack([-z, z], dim=1)


def search(net, x, attack, labels=None):
    labels = torch.zeros(len(x), dtype=torch.int64) if labels is None else labels
    return craft(attack, net, x, labels, torch.arange(len(x)), FAR)


def moved(made, x):
    """How many pixels of each example moved, whatever their channels."""
    return (made.x_adv != x).any(1).flatten(1).sum(1)


def test_a_pixel_is_found_where_one_is_enough_and_nothing_moves_where_it_is_not():
    weights = torch.ones(1, 4, 4)
    x = torch.stack([torch.full((1, 4, 4), v) for v in (0.5, 0.1)])
    net = Weighed(weights, 8.4)  # sums are 8 and 1.6: the first needs 0.4 more
    made = search(net, x, PixelSearch())
    assert moved(made, x).tolist() == [1, 0]
    assert made.x_adv[0].max() == 1.0 and made.queries.tolist()[1] == 1 + 32


def test_as_many_pixels_as_are_needed_and_no_more():
    x = torch.full((1, 1, 4, 4), 0.5)
    for needed in (1, 2, 3):
        net = Weighed(torch.ones(1, 4, 4), 8 + 0.5 * needed - 0.1)
        few, enough = (search(net, x, PixelSearch(pixels=k)) for k in (needed - 1 or 1, 4))
        assert int(moved(enough, x)) == needed
        assert int(moved(few, x)) == (1 if needed == 1 else 0)


def test_every_corner_of_the_colours_is_tried():
    """Only red and blue at their ends and green at 0 turn this one, in one place."""
    weights = torch.zeros(3, 3, 3)
    weights[:, 1, 2] = torch.tensor([1.0, -1.0, 1.0])
    x = torch.full((1, 3, 3, 3), 0.5)
    made = search(Weighed(weights, 1.9), x, PixelSearch())
    assert made.x_adv[0, :, 1, 2].tolist() == [1.0, 0.0, 1.0] and int(moved(made, x)) == 1


def test_the_answer_is_that_of_trying_all():
    net, data = ra.load("digits-cnn"), ra.data("digits/validation[:6]")
    right = net(data.images).argmax(1) == data.labels
    x, y = data.images[right], data.labels[right]
    made = search(net, x, PixelSearch(), y)
    for i in range(len(x)):
        points = []
        for row, column, end in itertools.product(range(8), range(8), (0.0, 1.0)):
            points.append(x[i].clone())
            points[-1][:, row, column] = end
        can = bool((net(torch.stack(points)).argmax(1) != y[i]).any())
        assert can == bool(net(made.x_adv[i : i + 1]).argmax(1) != y[i])


def test_ranks_are_drawn_as_the_paper_draws_them():
    u = (torch.arange(100_000) + 0.5) / 100_000
    share = torch.bincount(pixel_search._rank(u, 5), minlength=5) / len(u)
    expected = torch.tensor([(2 * 5 - 2 * i + 1) / 25 for i in range(1, 6)])
    assert torch.allclose(share, expected, atol=1e-4)


def test_many_channels_move_alone_or_together():
    corners = pixel_search._corners(Domain((6, 10)))
    assert corners.shape == (14, 6) and int(corners.isnan().all(1).sum()) == 0
    assert int((~corners.isnan()).all(1).sum()) == 2
    assert len(pixel_search._corners(Domain((3, 4, 4)))) == 8
