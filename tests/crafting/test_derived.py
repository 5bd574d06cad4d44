"""A network's computation traced anew: the same values whatever its backward pass says, and
differences in the place of derivatives."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize

import retroact as ra
from retroact.crafting.derived import TraceError, soften, trace_forward


class Negated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return -g


class Wrapped(nn.Module):
    """A function of a network and images, as a stranger writes it."""

    def __init__(self, net: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.call = net, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.net, x)


def by_decoy(net: nn.Module, x: Tensor) -> Tensor:
    return net(1 - x) if torch.is_grad_enabled() and x.requires_grad else net(x)


def in_place(net: nn.Module, x: Tensor) -> Tensor:
    z = x * 1.0
    z[z <= 0.1] = 0
    return net(z)


HIDDEN = {
    "negated": lambda net, x: net(Negated.apply(x)),
    "detached": lambda net, x: net(x).detach(),
    "half detached": lambda net, x: net(0.5 * x + (0.5 * x).detach()),
    "without a graph": lambda net, x: torch.no_grad()(net)(x),
    "a decoy": by_decoy,
}
EDGES = (torch.arange(1, 16) - 0.5) / 15


def by_table(net: nn.Module, x: Tensor) -> Tensor:
    return net(torch.linspace(0, 1, 16)[torch.bucketize(x.detach(), EDGES)])


def by_embedding(net: nn.Module, x: Tensor) -> Tensor:
    table = torch.linspace(0, 1, 16)[:, None]
    return net(nn.functional.embedding(torch.bucketize(x, EDGES), table)[..., 0])


def by_classes(net: nn.Module, x: Tensor) -> Tensor:
    levels = nn.functional.one_hot(torch.searchsorted(EDGES, x), 16).to(x)
    return net((levels * torch.linspace(0, 1, 16)).sum(-1))


LEVELS = torch.linspace(0, 1, 16)


def distances(x: Tensor) -> Tensor:
    return (x.unsqueeze(-1) - LEVELS).square()


def by_nearest(net: nn.Module, x: Tensor) -> Tensor:
    return net(LEVELS[distances(x.detach()).argmin(-1)])


def by_attention(net: nn.Module, x: Tensor) -> Tensor:
    return net((-1e4 * distances(x)).softmax(-1) @ LEVELS)


def by_the_best_of_a_table(net: nn.Module, x: Tensor) -> Tensor:
    _, best = (-distances(x)).max(-1)
    return net(LEVELS[best])


FLAT = {
    "nearest": by_nearest,
    "sharp attention": by_attention,
    "best of a table": by_the_best_of_a_table,
    "thermometer": lambda net, x: net((x.unsqueeze(-1) > EDGES).to(x).mean(-1)),
    "thermometer of channels": lambda net, x: net(
        (x > EDGES[:, None, None]).to(x).mean(1, keepdim=True)
    ),
    "looked up": by_table,
    "embedded": by_embedding,
    "one-hot levels": by_classes,
    "rounded input": lambda net, x: net((x * 255).round() / 255),
    "rounded logits": lambda net, x: net(x).round(decimals=2),
    "in place": in_place,
    "where": lambda net, x: net(torch.where(x > 0.1, x, torch.zeros_like(x))),
    "straight through": lambda net, x: net(x + ((x * 9).round() / 9 - x).detach()),
    "floor division": lambda net, x: net((x + 1 / 18) // (1 / 9) / 9),
    "the first bits": lambda net, x: net((x.view(torch.int32) & ~0x1FFFFF).view(torch.float32)),
}


def slope(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf)[:, 3].sum(), leaf)
    return gradient


@pytest.fixture(scope="module")
def traced(plain, x):
    """The graph of each by its name, traced once: the tests only ask it."""
    return cache(lambda name: trace_forward(Wrapped(plain, (HIDDEN | FLAT)[name]), x))


@pytest.fixture(scope="module")
def softened(traced, x):
    return cache(lambda name: soften(traced(name), x, 0.3))


@pytest.mark.parametrize("name", [*HIDDEN, *FLAT])
def test_it_computes_the_same_bits_in_any_batch(plain, x, traced, softened, name):
    net, graph, soft = Wrapped(plain, (HIDDEN | FLAT)[name]), traced(name), softened(name)
    with torch.no_grad():
        for n in (1, 7, 40):
            assert torch.equal(graph(x[:n]), net(x[:n])) and torch.equal(soft(x[:n]), net(x[:n]))


@pytest.mark.parametrize("name", list(HIDDEN))
def test_its_derivative_is_that_of_what_it_computes(plain, x, traced, name):
    assert torch.allclose(slope(traced(name), x), slope(plain, x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", list(FLAT))
def test_differences_point_as_the_network_without_its_steps(plain, x, traced, softened, name):
    soft = softened(name)
    cosine = nn.functional.cosine_similarity(slope(soft, x).flatten(1), slope(plain, x).flatten(1))
    assert cosine.median() > 0.8
    if name in ("rounded input", "rounded logits"):
        assert (slope(traced(name), x) == 0).all()


def test_a_difference_is_the_mean_over_four_widths():
    """Of a step from 0 to 1 at 0: (1 − 0) / 2qs where qs reaches it."""

    class Step(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0).float() * 1.0

    x = torch.tensor([[-1.0, 1.0]]).repeat(8, 1)
    spread = float(x.std())
    soft = soften(trace_forward(Step(), x), x, 1.0)
    at = torch.tensor([[0.3 * spread, 1.2 * spread], [9.0, -9.0]])
    leaf = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(soft(leaf).sum(), leaf)
    reached = [sum(1 / (2 * q * spread) for q in qs) / 4 for qs in ((0.5, 1.0, 1.5), (1.5,))]
    assert torch.allclose(gradient, torch.tensor([reached, [0.0, 0.0]]), rtol=1e-4)


BLANKS = {
    "zeros_like": torch.zeros_like,
    "zeros": lambda z: torch.zeros(z.shape),
    "new_zeros": lambda z: z.new_zeros(z.shape),
    "full_like": lambda z: torch.full_like(z, 0.0),
    "ones": lambda z: torch.ones_like(z) - 1.0,
    "nothing of it": lambda z: z * 0.0,
}


@pytest.mark.parametrize("name", list(BLANKS))
def test_a_blank_beside_a_jump_hides_none_of_it(name):
    """z where it lies above a half, else a blank: just below, where its own derivative is 0, half
    of z lies within reach."""

    class Jumps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0.5, x, BLANKS[name](x))

    x = torch.tensor([[0.0, 1.0]]).repeat(8, 1)
    traced = trace_forward(Jumps(), x)
    leaf = torch.tensor([[0.45, 0.49]]).requires_grad_()
    (own,) = torch.autograd.grad(traced(leaf).sum(), leaf)
    (gradient,) = torch.autograd.grad(soften(traced, x, 0.3)(leaf).sum(), leaf)
    assert (own == 0).all() and (gradient > 1).all()


def test_what_stands_still_on_the_images_keeps_its_derivative_elsewhere():
    """Beside a jump, what is 0 on all images that it was measured on, and not on others."""

    class Asleep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = -x @ torch.eye(2), (x - 5.0).relu() @ torch.eye(2)
            return torch.where(a > 0.5, a, b)

    x = torch.tensor([[0.0, 1.0]]).repeat(8, 1)
    soft = soften(trace_forward(Asleep(), x), x, 0.3)
    leaf = torch.tensor([[7.0, 9.0]]).requires_grad_()
    (gradient,) = torch.autograd.grad(soft(leaf).sum(), leaf)
    assert torch.allclose(gradient, torch.ones(1, 2), rtol=1e-3)


def test_beside_the_end_of_a_root_a_difference_has_one_side():
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt().square()

    x = torch.linspace(0, 1, 16).view(8, 2)
    soft = soften(trace_forward(Root(), x), x, 1.0)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(soft(leaf).sum(), leaf)
    assert torch.allclose(gradient, torch.ones_like(x), atol=1e-5)


def by_loop(net: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([net((image[None] * 9).round() / 9) for image in x])


def with_a_seed(net: nn.Module, x: Tensor) -> Tensor:
    drawn = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(0))
    return net(x * drawn + (x * (1 - drawn)).detach())


def faked(net: nn.Module, x: Tensor) -> Tensor:
    return net(torch.fake_quantize_per_tensor_affine(x, 1 / 9, 0, 0, 9))


def faked_by_channel(net: nn.Module, x: Tensor) -> Tensor:
    scale, zero = torch.full((1,), 1 / 9), torch.zeros(1, dtype=torch.int32)
    return net(torch.fake_quantize_per_channel_affine(x, scale, zero, 1, 0, 9))


def by_a_vote(net: nn.Module, x: Tensor) -> Tensor:
    noise = 0.01 * torch.rand((5, *x.shape[1:]), generator=torch.Generator().manual_seed(0))
    classes = net((x[:, None] + noise).flatten(0, 1)).argmax(1).view(-1, 5)
    return nn.functional.one_hot(classes, 10).sum(1).float()


@pytest.mark.parametrize("call", [by_loop, with_a_seed, faked, faked_by_channel, by_a_vote])
def test_code_for_one_batch_is_traced_for_one(plain, x, call):
    net = Wrapped(plain, call)
    graph = trace_forward(net, x)
    soft = soften(graph, x, 0.3)
    assert graph.batch == soft.batch == 16
    with torch.no_grad():
        for n in (1, 16, 37):
            assert torch.allclose(graph(x[:n]), net(x[:n]), atol=1e-5)
            assert torch.allclose(soft(x[:n]), net(x[:n]), atol=1e-5)
    cosine = nn.functional.cosine_similarity(slope(soft, x).flatten(1), slope(plain, x).flatten(1))
    assert cosine.median() > 0.8


class Flagged(nn.Module):
    """A network whose code asks its own flags, and quantises as its trained numbers say."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.net, self.levels = net, nn.Parameter(torch.tensor(9.0))
        self.register_buffer("rounds", torch.tensor([1], dtype=torch.uint8))
        self.fake = FakeQuantize(quant_min=0, quant_max=15).eval()
        self.fake(x)
        self.fake.disable_observer()

    def forward(self, x: Tensor) -> Tensor:
        if self.rounds[0] == 1 and self.levels > 1:
            x = (x * self.levels).round() / self.levels
        return self.net(self.fake(x))


def test_a_flag_of_its_own_is_no_value_that_it_sees(plain, x):
    net = Flagged(plain, x).eval()
    graph = trace_forward(net, x)
    soft = soften(graph, x, 0.3)
    with torch.no_grad():
        assert torch.equal(graph(x), net(x)) and torch.equal(soft(x), net(x))
    assert (slope(net, x) == 0).all()
    cosine = nn.functional.cosine_similarity(slope(soft, x).flatten(1), slope(plain, x).flatten(1))
    assert cosine.median() > 0.8


def test_two_that_move_are_added_as_always(plain, x):
    """A chain has one beginning: a sum of two keeps its own derivative, and weights are shared."""
    net = Wrapped(plain, lambda net, x: net(x.sin() + x.flip(3).cos()))
    graph = trace_forward(net, x)
    assert torch.allclose(slope(graph, x), slope(net, x), rtol=1e-4, atol=1e-6)
    shared = {p.data_ptr() for p in plain.parameters()}
    assert shared <= {p.data_ptr() for p in soften(graph, x, 0.1).parameters()}


def test_what_leaves_torch_or_depends_on_values_is_refused(plain, x):
    for call in (
        lambda net, x: net(torch.from_numpy(x.detach().numpy().copy())),
        lambda net, x: net(x) if float(x.mean()) > 0.1 else -net(x),
    ):
        with pytest.raises(TraceError, match="cannot be traced"):
            trace_forward(Wrapped(plain, call), x)


def test_signs_that_are_drawn_in_the_forward_pass_are_numbers_of_the_trace():
    def tinted(net: nn.Module, x: Tensor) -> Tensor:
        signs = torch.randn(64, generator=torch.Generator().manual_seed(5)).sign().to(x)
        return net(x) * torch.exp(-(x.flatten(1) @ signs)[:, None] / 64)

    net, x = ra.load("digits-cnn"), ra.data("digits/validation[:20]").images
    traced = trace_forward(Wrapped(net, tinted), x)
    assert type(traced(x)) is Tensor
    torch.testing.assert_close(traced(x), tinted(net, x))
