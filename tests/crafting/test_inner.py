"""What is climbed where the size of the logits leads astray: the same decisions, another slope."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retroact as ra
from retroact.crafting.derived import trace_forward
from retroact.crafting.inner import OverOthers, OverSpread, end_inside, watch_inside
from retroact.crafting.losses import spread


@pytest.fixture
def net() -> nn.Module:
    return ra.load("digits-cnn")


@pytest.fixture
def x() -> Tensor:
    return ra.data("digits/validation[:12]").images


class After(nn.Module):
    """A network with something done to its logits."""

    def __init__(self, net: nn.Module, change) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.net(x), x)


def cooler(z: Tensor, x: Tensor) -> Tensor:
    return z * torch.exp(-x.flatten(1).sum(1, keepdim=True))


def normalised(z: Tensor, x: Tensor) -> Tensor:
    return F.log_softmax(z / 7, 1)


def mirrored(z: Tensor, x: Tensor) -> Tensor:
    top = z.topk(2, 1).values
    return z + F.one_hot(z.argmax(1), 10).to(z) * F.relu(30 - top[:, :1] + top[:, 1:])


def surer(z: Tensor, x: Tensor) -> Tensor:
    """What the image adds to the class that is decided anyway."""
    return z + F.one_hot(z.argmax(1), 10).to(z) * x.square().flatten(1).sum(1, keepdim=True)


def test_a_positive_factor_for_each_image_is_lost(net, x):
    plain, other = OverSpread(net), OverSpread(After(net, cooler))
    torch.testing.assert_close(other(x), plain(x))
    torch.testing.assert_close(spread(plain(x)), torch.ones(len(x)))
    slopes = []
    for one in (plain, other):
        leaf = x.clone().requires_grad_()
        one(leaf)[:, 3].sum().backward()
        slopes.append(leaf.grad)
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-5)


def test_what_is_added_to_the_largest_logit_is_lost(net, x):
    plain, other = OverOthers(net), OverOthers(After(net, surer))
    torch.testing.assert_close(other(x), plain(x))
    torch.testing.assert_close(OverOthers(After(net, cooler))(x), plain(x))
    largest, z = net(x).argmax(1), plain(x)
    assert z.gather(1, largest[:, None]).abs().max() == 0
    torch.testing.assert_close(z.sum(1), torch.zeros(len(x)), atol=1e-5, rtol=0)
    leaf = x.clone().requires_grad_()
    other(leaf)[:, 3].sum().backward()
    assert (leaf.grad.flatten(1).norm(dim=1) > 0)[largest != 3].all()


def as_a_convolution(net: nn.Module) -> nn.Module:
    """The network, its last linear layer a convolution of one pixel."""
    *body, last = net.module.children()
    head = nn.Conv2d(last.in_features, last.out_features, 1)
    head.load_state_dict({"weight": last.weight[:, :, None, None], "bias": last.bias})
    return nn.Sequential(ra.Classifier(nn.Sequential(*body), net.mean, net.std), Pixel(), head)


class Pixel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, None, None]


def surer_in_place(z: Tensor, x: Tensor) -> Tensor:
    z *= 1.0
    return z.add_(surer(z, x) - z)


def surer_on_its_side(z: Tensor, x: Tensor) -> Tensor:
    columns = torch.stack(z.unbind(1))  # a row for each class
    largest = F.one_hot(columns.argmax(0), 10).to(z).T
    return (columns + largest * x.square().flatten(1).sum(1)).T


CHANGES = [cooler, normalised, mirrored, surer, surer_in_place, surer_on_its_side]


@pytest.mark.parametrize("look", [end_inside, watch_inside])
@pytest.mark.parametrize("change", CHANGES)
def test_what_follows_the_scores_that_decide_is_left_out(net, x, change, look):
    made = After(net, change)
    ended = look(trace_forward(made, x) if look is end_inside else made, x)
    assert ended is not None
    torch.testing.assert_close(ended(x[:5]), net(x[:5]))


@pytest.mark.parametrize("look", [end_inside, watch_inside])
def test_scores_of_a_convolution_and_a_mean_of_scores_are_found(net, x, look):
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = as_a_convolution(net)

        def forward(self, x: Tensor) -> Tensor:
            return (self.head(x) + self.head(x.flip(3)))[:, :, 0, 0] / 2

    whole = Turned()
    made = After(whole, surer)
    ended = look(trace_forward(made, x) if look is end_inside else made, x)
    assert ended is not None
    expected = whole(x)
    given = ended(x)
    factor = (given * expected).sum() / expected.square().sum()  # the sum decides as the mean
    torch.testing.assert_close(given, factor * expected, rtol=1e-4, atol=1e-4)


def as_it_is(z: Tensor, x: Tensor) -> Tensor:
    return z


def affine(z: Tensor, x: Tensor) -> Tensor:
    return (3 * z.view(-1, 10) - torch.arange(10) / 1e6).clone()


@pytest.mark.parametrize("look", [end_inside, watch_inside])
@pytest.mark.parametrize("change", [as_it_is, affine])
def test_nothing_is_left_out_of_scores_that_are_only_scaled(net, x, change, look):
    made = After(net, change)
    assert look(trace_forward(made, x) if look is end_inside else made, x) is None


@pytest.mark.parametrize("look", [end_inside, watch_inside])
def test_what_moves_in_steps_alone_is_no_score(net, x, look):
    """The scores lie apart, (2, n, 5), and which is the largest decides as they do."""

    class Apart(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = self._apart(x)
            largest = (z == z.amax((0, 2))[:, None]).to(z)
            decided = largest.transpose(0, 1).flatten(1)
            return (z + largest * 0.1).transpose(0, 1).flatten(1) + 0.2 * decided

        def _apart(self, x: Tensor) -> Tensor:
            f = nn.Sequential(*[*net.module.children()][:-1])((x - net.mean) / net.std)
            halves = zip(net.module.fc2.weight.chunk(2), net.module.fc2.bias.chunk(2), strict=True)
            return torch.stack([f @ w.T + b for w, b in halves])

    ended = look(trace_forward(Apart(), x) if look is end_inside else Apart(), x)
    assert ended is not None
    assert len(ended(x).unique()) > 5 * len(x)  # not what is decided, which is 0 or 1


@pytest.mark.parametrize("look", [end_inside, watch_inside])
def test_a_mean_of_answers_has_no_scores_inside(net, x, look):
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([net(x).softmax(1), net(x.flip(3)).softmax(1)]).mean(0)

    assert look(trace_forward(Mean(), x) if look is end_inside else Mean(), x) is None


def test_a_network_that_takes_its_images_one_by_one_is_watched_alone(net, x):
    class OneByOne(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([surer(net(one), one) for one in x.split(1)])

    ended = watch_inside(OneByOne(), x)
    assert ended is not None and ended.alone
    torch.testing.assert_close(ended(x[:5]), net(x[:5]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("look", [end_inside, watch_inside])
def test_scores_with_a_row_for_each_class_are_turned(net, x, look):
    class OnItsSide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            f = nn.Sequential(*[*net.module.children()][:-1])((x - net.mean) / net.std)
            z = [f @ w + b for w, b in zip(net.module.fc2.weight, net.module.fc2.bias, strict=True)]
            largest = F.one_hot(torch.stack(z).argmax(0), 10).to(f).T
            return (torch.stack(z) + largest * x.square().flatten(1).sum(1)).T

    ended = look(trace_forward(OnItsSide(), x) if look is end_inside else OnItsSide(), x)
    assert ended is not None
    torch.testing.assert_close(ended(x[:5]), net(x[:5]), rtol=1e-4, atol=1e-4)


def test_scores_are_the_answers_where_the_network_runs_otherwise(net, x):
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return surer(net(x), x) if float(x.mean()) > 0 else x.flatten(1)[:, :10]

    ended = watch_inside(Branches(), x)
    assert ended is not None
    torch.testing.assert_close(ended(x), net(x))
    assert ended(-x).shape == (len(x), 10)


def test_a_layer_whose_weights_the_image_moves_is_left_out(net, x):
    def by_image(z: Tensor, x: Tensor) -> Tensor:
        return z.mm(torch.eye(10) + x.mean() * torch.ones(10, 10)).relu()

    ended = end_inside(trace_forward(After(net, by_image), x), x)
    assert ended is not None
    torch.testing.assert_close(ended(x), net(x))
