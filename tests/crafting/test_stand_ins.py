"""Networks that leave torch: found by looking, the same values, a derivative around what is
lost."""

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import retroact as ra
from retroact.auditing.battery import Battery
from retroact.crafting.domain import Domain
from retroact.crafting.reach import find_reaches
from retroact.crafting.stand_ins import StandIn, Way, find_ways, fit_front, learn_reader

DOMAIN = Domain((1, 8, 8))


class Wrapped(nn.Module):
    """A function of a network and images, as a stranger writes it."""

    def __init__(self, net: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.call = net, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.net, x)


class Refusing(nn.Module):
    """A module that refuses a graph, with a child of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.round(self.first(x).numpy() * 31) / 31)


class Rows(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, row: Tensor) -> Tensor:
        return self.net((row + 1).view(-1, 1, 8, 8) / 2)


def by_numpy(net: nn.Module, x: Tensor) -> Tensor:
    return net(torch.from_numpy(np.round(x.detach().numpy() * 31) / 31))


def as_rows(net: nn.Module, x: Tensor) -> Tensor:
    return Rows(net)(x)


def one_hot(net: nn.Module, x: Tensor) -> Tensor:
    z = net(x).numpy()  # raises where a graph is recorded
    return torch.from_numpy(np.eye(10, dtype=np.float32)[z.argmax(1)])


def without_a_graph(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x)


def slope(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf)[:, 3].sum(), leaf)
    return gradient


def only_way(net: nn.Module, x: Tensor) -> Way:
    (way,) = find_ways(net, x)
    return way


def test_straight_through_a_front_end_that_leaves_torch(plain, x):
    net = Wrapped(plain, by_numpy)
    stand_in = StandIn(net, only_way(net, x))
    assert torch.equal(stand_in(x), net(x))
    rounded = torch.round(x * 31) / 31
    assert torch.allclose(slope(stand_in, x), slope(plain, rounded))


def test_a_front_end_that_refuses_a_graph_is_asked_without_one(plain, x):
    net = nn.Sequential(Refusing(), plain)
    way = only_way(net, x)
    assert way.entries == ("1",) and not way.exits and way.changed
    with torch.no_grad():
        answer = net(x)
    assert torch.equal(StandIn(net, way)(x), answer)


@pytest.mark.parametrize("call", [one_hot, without_a_graph])
def test_logits_that_lose_their_graph_are_taken_where_they_had_one(plain, x, call):
    net = Wrapped(plain, call)
    ways = find_ways(net, x)
    assert ways
    stand_in = StandIn(net, ways[-1])
    assert torch.equal(stand_in(x), plain(x))
    assert torch.allclose(slope(stand_in, x), slope(plain, x))


def test_a_vote_is_followed_through_all_its_voters(plain, x):
    other = ra.load("digits-cnn").eval()
    with torch.no_grad():
        other.module.fc2.weight.mul_(0.5)

    class Vote(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nets = nn.ModuleList([plain, other])

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return sum(nn.functional.one_hot(net(x).argmax(1), 10).float() for net in self.nets)

    way = only_way(Vote(), x)
    assert way.exits == ("nets.0", "nets.1")
    assert torch.allclose(StandIn(Vote(), way)(x), (plain(x) + other(x)) / 2, atol=1e-5)


class ByChance(nn.Module):
    """Two networks of which one answers, at times both; by numpy."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.nets, self.called = nn.ModuleList([net, net[:]]), [0, 1]

    def forward(self, x: Tensor) -> Tensor:
        votes = np.stack([self.nets[i](x).detach().numpy() for i in self.called])
        return torch.from_numpy(votes.mean(0).round(1))


def test_a_network_that_calls_one_of_several_by_chance_is_followed_through_that_one(plain, x):
    chosen = ByChance(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    (way,) = [way for way in find_ways(chosen, x) if way.exits]
    assert way.exits == ("nets.0", "nets.1")
    stand_in = StandIn(chosen, way)
    stand_in.net.called = [1]
    assert torch.allclose(stand_in(x), chosen.nets[1](x))
    stand_in.net.called = []  # nothing is known of what is done then
    z, leaf = torch.randn(len(x), 10), x.clone().requires_grad_()
    stand_in.net.forward = lambda images: z
    assert torch.equal(stand_in(leaf), z)
    (slope,) = torch.autograd.grad(stand_in(leaf).sum(), leaf)
    assert not slope.any()
    del stand_in.net.forward
    stand_in.net.called = [0, 1]
    assert torch.allclose(stand_in(x), chosen.nets[0](x), atol=1e-6)


def test_a_map_is_fitted_to_a_front_end_of_another_shape(plain, x):
    inner = Rows(plain)
    net = Wrapped(
        inner, lambda net, x: net(torch.from_numpy(2 * x.detach().numpy() - 1).flatten(1))
    )
    way = only_way(net, x)
    assert not way.alike and way.changed and way.single
    guide = fit_front(net, way, x, torch.arange(len(x)), ra.Linf(0.1), DOMAIN)
    fitted, true = slope(StandIn(net, way, guide), x), slope(plain, x)
    cosine = nn.functional.cosine_similarity(fitted.flatten(1), true.flatten(1))
    assert cosine.min() > 0.999


def test_a_convolution_is_fitted_where_examples_are_large():
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Conv2d(1, 3, 14)

        def forward(self, x: Tensor) -> Tensor:
            small = nn.functional.avg_pool2d(x.detach(), 2)
            return self.net(small).flatten(1)

    net, x = Halved().eval(), ra.data("mnist/validation[:20]").images
    way = only_way(net, x)
    guide = fit_front(net, way, x, torch.arange(20), ra.Linf(0.1), Domain((1, 28, 28)))
    leaf = x.clone().requires_grad_()
    (true,) = torch.autograd.grad(net.net(nn.functional.avg_pool2d(leaf, 2))[:, 0].sum(), leaf)
    given = slope(lambda x: StandIn(net, way, guide)(x).flatten(1)[:, :1].expand(-1, 4), x)
    cosine = nn.functional.cosine_similarity(given.flatten(1), true.flatten(1))
    assert cosine.min() > 0.9


class Neighbours(nn.Module):
    """The classes of the nearest stored features, by numpy."""

    def __init__(self, net: nn.Module, stored: Tensor) -> None:
        super().__init__()
        *body, self.last = net.module
        self.body = nn.Sequential(*body)
        with torch.no_grad():
            self.stored = self.body(stored)
            self.classes = self.last(self.stored).argmax(1).numpy()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            apart = torch.cdist(self.body(x), self.stored).numpy()
        return torch.from_numpy(np.eye(10, dtype=np.float32)[self.classes[apart.argmin(1)]])


def test_what_is_read_off_features_elsewhere_is_followed_to_the_nearest_images(plain):
    seen = ra.data("digits/validation").images
    net = Neighbours(plain, seen)
    way = only_way(net, seen[:16])
    assert way.unread and way.exits == ("body",) and str(way) == "behind body"
    reader = learn_reader(net, way, seen)
    stand_in = StandIn(net, way, reader=reader)
    with torch.no_grad():
        assert (stand_in(seen).argmax(1) == net(seen).argmax(1)).float().mean() > 0.95
    (steeper, towards), x = (slope(net_, seen[:40]).flatten(1) for net_ in (stand_in, plain)), seen
    cosine = nn.functional.cosine_similarity(steeper, towards)
    assert cosine.median() > 0.3 and (steeper != 0).any(1).all()
    # a class that no image is of is further than any
    few = learn_reader(net, way, x[net(x).argmax(1) < 3])
    assert (few(net.stored)[:, 3:] < few(net.stored)[:, :3].amin(1, keepdim=True)).all()
    alone = learn_reader(net, way, x[net(x).argmax(1) == 3])
    assert (alone(net.stored).argmax(1) == 3).all() and alone(net.stored).isfinite().all()


def test_the_network_itself_is_left_as_it_is(plain, x):
    net = Wrapped(plain, by_numpy)
    before = {k: set(vars(m)) for k, m in net.named_modules()}
    flags = [p.requires_grad for p in net.parameters()]
    slope(StandIn(net, only_way(net, x)), x)
    assert before == {k: set(vars(m)) for k, m in net.named_modules()}
    assert flags == [p.requires_grad for p in net.parameters()]
    assert all(p.grad is None for p in net.parameters())


def test_threads_do_not_meet_in_it(plain, x):
    net = Wrapped(plain, by_numpy)
    stand_in = StandIn(net, only_way(net, x))
    alone, met = [slope(stand_in, part) for part in x.split(10)], [None] * 4

    def run(i: int, part: Tensor) -> None:
        for _ in range(5):
            met[i] = slope(stand_in, part)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(x.split(10))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, met, strict=True))


def test_it_travels_to_another_process(plain, x):
    net = Wrapped(plain, by_numpy)
    stand_in = StandIn(net, only_way(net, x))
    again = pickle.loads(pickle.dumps(stand_in))
    assert torch.equal(slope(again, x), slope(stand_in, x))


def test_what_is_no_module_or_has_none_within_has_no_way(x):
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)[:, :10]

    assert not find_ways(lambda x: x.flatten(1)[:, :10], x)
    assert not find_ways(Bare(), x)


def test_the_audit_decides_behind_numpy(plain):
    net, data = Wrapped(plain, by_numpy), ra.data("digits/validation[:60]")
    found = ra.audit(plain, net, data, ra.Linf(0.1), battery="quick")
    assert found.after.kernel == "straight-through identity in front of net"
    assert abs(found.verdict.counts.verified_gain) <= 0.05
    assert not found.verdict.doubts


# that logits are found in tuples as in dicts, tests/evaluation/test_outputs.py asks
@pytest.mark.parametrize("output", [dict, pytest.param(tuple, marks=pytest.mark.long)])
def test_logits_in_a_larger_output_are_found_there(plain, output):
    def rounded(net: nn.Module, x: Tensor):
        z = net(torch.round(15 * x) / 15)
        return {"logits": z} if output is dict else (z, z.new_zeros(len(z)))

    data = ra.data("digits/validation[:20]")
    spent = {"steps": 4, "targets": 2, "targeted_steps": 4, "finish": 4, "alarmed_finish": 4}
    little = Battery(**spent, sample=8, trial_steps=0, queries=0)
    found = ra.audit(plain, Wrapped(plain, rounded), data, ra.Linf(0.1), battery=little)
    assert found.verdict.effect != "GENUINE"
    assert found.verdict.counts.verified[1] < found.verdict.counts.clean[1]


def test_a_network_that_calls_its_parts_in_threads_is_answered_as_it_is(plain, x):
    def in_threads(net: nn.Module, x: Tensor) -> Tensor:
        rounded = torch.round(31 * x) / 31
        with ThreadPoolExecutor(2) as pool:
            votes = list(pool.map(net, (rounded, rounded)))
        return votes[0] + votes[1]

    net = Wrapped(plain, in_threads)
    followed = StandIn(net, Way(("net",), (), alike=True, changed=True, single=False))
    assert torch.equal(followed(x), net(x))
    data, threat = ra.data("digits/validation[:20]"), ra.Linf(0.1)
    assert not list(find_reaches(net, data.images, data.index, threat, DOMAIN))
