"""Hardening learns what it says and nothing else, keeps what it is told to keep, and makes a
network harder to fool."""

import copy
import json
from dataclasses import replace
from typing import get_args
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import retroact as ra
from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import JumpReLU, ReLU, SReLU
from retroact.crafting.driver import craft
from retroact.crafting.oracle import AccessError
from retroact.evaluation.evaluate import decide
from retroact.evaluation.trial import Trial
from retroact.files import CheckpointError
from retroact.retrofitting.copying import deep_copy
from retroact.training.budget import within
from retroact.training.hardening import Hardening, _Checkpoints, _Learner, harden
from retroact.training.learnable import LEARNABLE, Kappa, Learn
from retroact.training.resuming import FILE, read_checkpoint

THREAT = ra.Linf(0.1)
BRIEF = Hardening(steps=6, batch=64, attack_steps=2)


@pytest.fixture(scope="module")
def net():
    return ra.load("digits-cnn")


@pytest.fixture(scope="module")
def train():
    return ra.data("digits/train")


@pytest.fixture(scope="module")
def held():
    return ra.data("digits/validation")


def robust(net, data, threat):
    outcome = craft(ra.PGD(20, loss="margin"), net, data.images, data.labels, data.index, threat)
    return float(
        ((decide(net, outcome.x_adv) == data.labels) & (decide(net, data.images) == data.labels))
        .float()
        .mean()
    )


@pytest.fixture(scope="module")
def withstands(net, held):
    """What of them the network withstands as it is."""
    return robust(net, held, THREAT)


@pytest.mark.parametrize(
    "recipe",
    [
        Hardening(steps=100, batch=64, lr=0.15, attack_steps=4, clean_weight=0.3),
        Hardening(learn="early", steps=60, batch=64, lr=0.1, attack_steps=3),
        Hardening(learn="all", steps=60, batch=64, attack_steps=3, bf16=True),  # slow without AMX
    ],
    ids=str,
)
def test_what_is_learned_makes_the_network_harder_to_fool(recipe, net, train, held, withstands):
    hardened = harden(net, train, THREAT, recipe, seed=0)
    assert {p.dtype for p in hardened.net.parameters()} == {torch.float32}
    assert robust(hardened.net, held, THREAT) > withstands + 0.03
    assert hardened.dose == 1.0


def test_the_net_itself_stays_as_it_was(net, train):
    before = copy.deepcopy(net.state_dict())
    harden(net, train, THREAT, BRIEF)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


def test_only_shifts_and_the_logits_biases_are_learned(net, train):
    hardened = harden(net, train, THREAT, BRIEF)
    last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    before, after = dict(net.named_parameters()), dict(hardened.net.named_parameters())
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert [before[name] is last.bias for name in changed] == [True]
    assert (
        hardened.learned < hardened.parameters
        and hardened.share == hardened.learned / hardened.parameters
    )
    assert hardened.net.retrofit.activation.sha256


@pytest.mark.parametrize(("learn", "kind"), [("kappa", JumpReLU), ("slopes", SReLU)])
def test_kappa_and_slopes_come_out_as_an_activation_for_each_site(net, train, learn, kind):
    hardened = harden(
        net, train, THREAT, Hardening(learn=learn, steps=10, batch=64, attack_steps=2, lr=0.05)
    )
    activation = hardened.net.retrofit.activation
    assert isinstance(activation, PerSite) and all(
        isinstance(a, kind) for a in activation.activations
    )
    assert any(a != a.neutral for a in activation.activations)


def test_all_learns_every_weight_and_norms_only_norms_and_logits(train):
    plain = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)
    )
    plain(train.images[:2])
    net = ra.Classifier(plain, shape=tuple(train.images.shape[1:]), name="mine")
    every = harden(net, train, THREAT, Hardening(learn="all", steps=2, batch=32, attack_steps=1))
    assert every.learned == every.parameters
    hardened = harden(
        net, train, THREAT, Hardening(learn="norms", steps=2, batch=32, attack_steps=1)
    )
    assert hardened.learned == 6 + 6 + 10
    assert [h.net.name for h in (every, hardened)] == [
        "mine hardened (all)",
        "mine hardened (norms)",
    ]
    assert net.name == "mine"
    before, after = net.state_dict(), hardened.net.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved == {"module.1.weight", "module.1.bias", "module.4.bias"}
    ends = harden(
        net, train, THREAT, Hardening(learn="ends", steps=2, batch=32, attack_steps=1)
    ).net.state_dict()
    moved = {k for k in before if not torch.equal(before[k], ends[k])}
    assert moved == {f"module.{layer}.{what}" for layer in (0, 1, 4) for what in ("weight", "bias")}
    # a step of Adam is as long as its rate
    far = {k: float((ends[k] - before[k]).abs().max()) for k in moved}
    assert 0.1 < far["module.0.weight"] / far["module.1.weight"] < 0.5


def test_the_norms_of_groups_and_layers_are_learned_too(train):
    layers = nn.Conv2d(1, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), nn.LayerNorm(216)
    torch.manual_seed(0)
    net = ra.Classifier(nn.Sequential(*layers, nn.Linear(216, 10)), shape=(1, 8, 8))
    recipe = Hardening(learn="norms", steps=2, batch=32, attack_steps=1)
    hardened = harden(net, train, THREAT, recipe)
    before, after = net.state_dict(), hardened.net.state_dict()
    moved = {k.removeprefix("module.") for k in before if not torch.equal(before[k], after[k])}
    assert moved == {"1.weight", "1.bias", "4.weight", "4.bias", "5.bias"}
    assert hardened.learned == 2 * 6 + 2 * 216 + 10


def test_without_weight_on_clean_images_the_loss_is_that_of_the_moved_ones(net, train):
    both = [
        harden(net, train, THREAT, Hardening(steps=3, batch=32, attack_steps=1, clean_weight=w))
        for w in (0.0, 1e-9)
    ]
    first, second = (nn.utils.parameters_to_vector(m.net.parameters()) for m in both)
    torch.testing.assert_close(first, second)


def test_early_learns_the_shifts_and_the_first_layer(net, train):
    hardened = harden(net, train, THREAT, replace(BRIEF, learn="early"))
    before, after = dict(net.named_parameters()), dict(hardened.net.named_parameters())
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved == ["module.conv1.weight", "module.fc2.bias"]
    assert hardened.net.retrofit.activation.sha256
    assert hardened.learned - before["module.conv1.weight"].numel() == 16 + 32 + 64 + 10


def test_low_rank_learns_under_two_per_cent_and_changes_layers_by_rank_one(net, train):
    made = harden(net, train, THREAT, replace(BRIEF, learn="low-rank"))
    before, after = dict(net.named_parameters()), dict(made.net.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    vectors = {name for name, p in before.items() if p.dim() == 1}
    assert moved == vectors | {"module.conv1.weight", "module.conv2.weight"}
    change = (after["module.conv2.weight"] - before["module.conv2.weight"]).flatten(1)
    strengths = torch.linalg.svdvals(change)
    assert strengths[0] > 1e4 * strengths[1]
    product = sum(change.shape)
    first = before["module.conv1.weight"].numel()
    assert made.learned == sum(before[name].numel() for name in vectors) + first + product
    assert made.share < 0.02
    # a layer that is left has no room: its product would take more than two per cent
    left = before["module.fc1.weight"]
    assert made.learned + sum(left.shape) > 0.02 * made.parameters


def test_half_a_dose_is_half_a_product_and_of_none_nothing_is_left(net, train):
    learner = _Learner(net, replace(BRIEF, learn="low-rank"), train, THREAT)
    learner.learn(0, _Checkpoints.of(None, {}, fresh=False), None)
    none, half, whole = (learner.build(dose).module.conv2.weight for dose in (0.0, 0.5, 1.0))
    assert torch.equal(none, net.module.conv2.weight)
    torch.testing.assert_close(half - none, (whole - none) / 2)
    assert torch.equal(decide(learner.work, train.images), decide(learner.build(1), train.images))


def test_steps_attack_the_products_as_learned_also_where_norms_are_folded(train):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 16, 3), nn.BatchNorm2d(16), nn.ReLU()
    layers = *layers, nn.Flatten(), nn.Linear(256, 60), nn.Linear(60, 10)
    net = ra.Classifier(nn.Sequential(*layers), shape=(1, 8, 8)).eval()
    learner = _Learner(net, replace(BRIEF, learn="low-rank"), train, THREAT)
    learner.learn(0, _Checkpoints.of(None, {}, fresh=False), None)
    assert "module.2" in learner.products and learner.attacked is not learner.work
    with torch.no_grad():
        plain, learned, attacked = (f(train.images) for f in (net, learner.work, learner.attacked))
    torch.testing.assert_close(attacked, learned)
    assert float((learned - plain).abs().max()) > 0.01


def test_weights_of_two_layers_and_frozen_ones_get_no_product(train):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.flat = nn.Conv2d(1, 4, 3), nn.Flatten()
            self.middle, self.other = nn.Linear(144, 144), nn.Linear(144, 144)
            self.frozen, self.last = nn.Linear(144, 144), nn.Linear(144, 10)
            self.other.weight = self.middle.weight

        def forward(self, x):
            z = self.flat(self.first(x).relu())
            for layer in (self.middle, self.other, self.frozen):
                z = layer(z).relu()
            return self.last(z)

    torch.manual_seed(0)
    net = Twice()
    net.frozen.requires_grad_(False)
    made = harden(net, train, THREAT, replace(BRIEF, learn="low-rank")).net
    before, after = dict(net.named_parameters()), dict(made.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"first.weight", "last.weight"} | {
        f"{layer}.bias" for layer in ("first", "middle", "other", "last")
    }
    assert made.other.weight is made.middle.weight


def test_eps_grows_over_the_ramp_and_the_rate_stays_where_the_mean_begins():
    shares = [Hardening(steps=10, ramp=0.4).share_of_eps_at(step) for step in range(10)]
    assert shares == [0.25, 0.5, 0.75] + [1.0] * 7
    assert [Hardening(steps=10).share_of_eps_at(step) for step in (0, 9)] == [1.0, 1.0]
    rates = [Hardening(steps=10, average=0.3).rate_at(step) for step in range(10)]
    assert rates[:7] == [Hardening(steps=10).rate_at(step) for step in range(7)]
    assert len(set(rates[7:])) == 1 and rates[7] < rates[6]


def test_the_mean_over_the_last_steps_is_what_is_kept(net, train, tmp_path):
    recipe = replace(BRIEF, steps=5, average=0.4)

    def learned(folder):
        """What is learned after each step."""
        seen = []
        how = {"checkpoint_dir": folder, "progress": lambda *_: seen.append(read(folder))}
        harden(net, train, THREAT, recipe, **how)
        return seen

    def read(folder):
        tensors = read_checkpoint(folder / FILE)[1]
        return {k: v for k, v in tensors.items() if k.startswith("learned.")}

    with mock.patch("retroact.training.hardening.EVERY", 1):
        kept = learned(tmp_path / "kept")
        with mock.patch("retroact.training.hardening._Learned.settle"):
            walked = learned(tmp_path / "walked")
    for name, mean in kept[4].items():
        assert torch.equal(kept[3][name], walked[3][name])
        torch.testing.assert_close(mean, (walked[3][name] + walked[4][name]) / 2)
        assert not torch.equal(mean, walked[4][name])


def test_a_pull_of_one_needs_no_labels(net, train):
    recipe = replace(BRIEF, learn="all", pull=1.0)
    bare = harden(net, train.images, THREAT, recipe).net.state_dict()
    told = ra.Images.of(train.images, decide(net, train.images))
    same = harden(net, told, THREAT, recipe).net.state_dict()
    assert all(torch.equal(bare[k], same[k]) for k in bare)
    with pytest.raises((ValueError, TypeError), match="labels"):
        harden(net, train.images, THREAT, replace(recipe, pull=0.5))
    # without moved images there is nothing to learn from one's own answers
    still = harden(net, train, THREAT, replace(recipe, clean_weight=1.0)).net.state_dict()
    labels = harden(net, train, THREAT, replace(recipe, clean_weight=1.0, pull=0.0)).net
    before = net.state_dict()
    far = [
        sum(float((s[k] - before[k]).square().sum()) for k in before)
        for s in (still, labels.state_dict())
    ]
    assert far[0] < far[1]


def test_a_part_that_is_frozen_stays_unless_all_of_the_network_is(net, train):
    tuned = deep_copy(net).requires_grad_(True)
    first = next(iter(dict(tuned.named_parameters())))
    tuned.get_parameter(first).requires_grad_(False)
    recipe = replace(BRIEF, learn="all", steps=2)
    made = harden(tuned, train, THREAT, recipe)
    assert made.learned == made.parameters - tuned.get_parameter(first).numel()
    before, after = dict(tuned.named_parameters()), dict(made.net.named_parameters())
    assert {k for k in before if torch.equal(before[k], after[k])} == {first}
    frozen = deep_copy(net).requires_grad_(False)
    assert harden(frozen, train, THREAT, recipe).learned == made.parameters
    tuned.requires_grad_(True)
    for name, p in tuned.named_parameters():
        p.requires_grad_("bias" not in name)
    with pytest.raises(ValueError, match="not frozen"):
        harden(tuned.module, train, THREAT, replace(recipe, learn="norms"))


class Shifted:
    """Moves images by up to a pixel, and keeps what it was shown."""

    def __init__(self):
        self.shown = []

    def __call__(self, x):
        self.shown.append(x)
        there = torch.randint(-1, 2, (2,)).tolist()
        return torch.roll(x, there, (2, 3))


def test_what_augments_is_asked_once_a_step_and_draws_by_the_seed(net, train):
    recipe, state = replace(BRIEF, learn="all", steps=3), torch.random.get_rng_state()
    with mock.patch("retroact.training.hardening._Learner._attack", side_effect=moved) as attack:
        one = harden(net, train, THREAT, recipe, augment=Shifted(), seed=4)
    given = [call.args[0] for call in attack.call_args_list]
    again = Shifted()
    with mock.patch("retroact.training.hardening._Learner._attack", side_effect=moved):
        two = harden(net, train, THREAT, recipe, augment=again, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(again.shown) == 3 and all(len(x) == recipe.batch for x in again.shown)
    pairs = zip(given, again.shown, strict=True)
    assert any(not torch.equal(x, shown) for x, shown in pairs)
    same = two.net.state_dict()
    assert all(torch.equal(v, same[k]) for k, v in one.net.state_dict().items())


def moved(x, y, index, threat, seed):
    return x


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        (lambda x: x - 1, r"expected examples in \[0, 1\]"),
        (lambda x: x / 0, r"got nan"),
        (lambda x: x[:, :, 1:], "a tensor"),
    ],
)
def test_what_augments_leaves_shape_and_box(net, train, augment, words):
    with pytest.raises(ValueError, match=words):
        harden(net, train, THREAT, BRIEF, augment=augment)


def test_a_budget_takes_as_many_steps_as_fit_and_goes_on_with_those(net, train, tmp_path):
    trial = Trial(seconds=1e-4, bytes=8.0)
    with mock.patch("retroact.training.budget.try_gradient", return_value=trial):
        chosen = within(net, train, Hardening(), "40s")
        assert chosen == Hardening(steps=200)  # 200 images, 9 passes, 1e-4 s each: .18 s a step
        assert within(net, train, Hardening(), 10).batch == 100
        assert within(net, train, Hardening(), 10, looks=27_000).steps == 100
        with pytest.raises(ValueError, match="60 steps of 25 examples take this net"):
            within(net, train, Hardening(), "1s")
    quick = Hardening(learn="all", batch=25, attack_steps=1)
    slow = Trial(seconds=0.04 / 60, bytes=8.0)
    with mock.patch("retroact.training.budget.try_gradient", return_value=slow):
        made = harden(net, train, THREAT, quick, budget=4, checkpoint_dir=tmp_path)
    assert made.recipe == replace(quick, steps=80)
    again = harden(net, train, THREAT, quick, budget=4, checkpoint_dir=tmp_path)
    assert again.recipe == made.recipe  # the clock says something else by now
    (tmp_path / "other").mkdir()
    facts = {"run": json.dumps({"recipe": "Standard(epochs=3)", "epochs": "1"})}
    save_file({"x": torch.zeros(1)}, tmp_path / "other" / FILE, metadata=facts)
    with pytest.raises(CheckpointError, match="is of another run"):
        harden(net, train, THREAT, quick, budget=4, checkpoint_dir=tmp_path / "other")

    def took(run):
        """A time that no busy machine makes longer."""
        run()
        return 0.004

    with mock.patch("retroact.evaluation.trial._time", took):
        chosen = harden(net, train[:200], THREAT, budget=2).recipe
    assert (chosen.learn, chosen.batch, chosen.steps) == ("all", 50, 80)


def test_the_dose_keeps_what_was_asked_for(net, train, held):
    # at a radius that costs far too much, on purpose
    recipe = Hardening(steps=20, batch=64, lr=0.2)
    hardened = harden(net, train, ra.Linf(0.3), recipe, keep=0.9, held=held)
    assert hardened.curve[0].dose == 0.0 and hardened.curve[-1].dose == hardened.dose < 1.0
    assert hardened.curve[-1].clean >= 0.9 * hardened.curve[0].clean > hardened.curve[1].clean
    kept = float((decide(hardened.net, held.images) == held.labels).float().mean())
    assert kept == pytest.approx(hardened.curve[-1].clean)


def test_the_same_seed_learns_the_same(net, train):
    first, again = (harden(net, train, THREAT, BRIEF, seed=3).net for _ in range(2))
    assert first.retrofit == again.retrofit
    assert first.retrofit != harden(net, train, THREAT, BRIEF, seed=4).net.retrofit


def test_the_gradient_of_a_jump_for_kappa_is_that_of_the_smooth_step():
    z, kappa = torch.linspace(-1, 2, 50), torch.tensor([0.5], requires_grad=True)
    out = Kappa()(ReLU(), z, kappa)
    assert torch.equal(out.detach(), JumpReLU(0.5)(z))
    (gradient,) = torch.autograd.grad(out.sum(), kappa)
    beta = 8.0 / 0.5
    s = torch.sigmoid(beta * (z - 0.5))
    torch.testing.assert_close(gradient, -(beta * z * s * (1 - s)).sum()[None])


class Detached(nn.Sequential):
    def forward(self, x):
        return super().forward(x).detach()


def test_bad_input_is_refused(net, train, held):
    with pytest.raises(ValueError, match="test data"):
        harden(net, ra.data("digits"), THREAT, BRIEF)
    with pytest.raises(ValueError, match="test data"):
        harden(net, train, THREAT, BRIEF, keep=0.9, held=ra.data("digits"))
    with pytest.raises(ValueError, match="give held="):
        harden(net, train, THREAT, BRIEF, keep=0.9)
    with pytest.raises(ValueError, match="keep in"):
        harden(net, train, THREAT, BRIEF, keep=1.5, held=held)
    with pytest.raises(ValueError, match="already carries"):
        harden(ra.retrofit(net, ra.JumpReLU(0.4)), train, THREAT, BRIEF)
    with pytest.raises(ValueError, match="no dose keeps"):
        harden(
            net, train, ra.Linf(0.4), Hardening(steps=20, lr=5.0), keep=1.0, held=held, doses=(1.0,)
        )
    with pytest.raises(AccessError, match="gives no gradient with respect to its input"):
        harden(ra.Classifier(Detached(net.module), shape=(1, 8, 8)), train, THREAT, BRIEF)


def test_every_word_of_learn_means_something():
    assert set(get_args(Learn)) == LEARNABLE.keys()


def test_the_rate_suits_what_is_learned_unless_it_is_given():
    rates = [Hardening(learn=learn).rate for learn in ("shifts", "ends", "norms", "all")]
    assert rates == [0.03, 0.03, 0.01, 0.001]
    assert Hardening(learn="all", lr=0.5).rate == 0.5


DTYPES = (torch.float16, torch.bfloat16, torch.float64)


# each word of learn with one of them, by turns
@pytest.mark.parametrize(
    ("dtype", "learn"), [(DTYPES[i % 3], w) for i, w in enumerate(get_args(Learn))], ids=str
)
def test_a_net_of_another_dtype_learns_what_its_float32_copy_learns_and_keeps_its_dtype(
    net, train, dtype, learn
):
    recipe = Hardening(learn=learn, steps=4, batch=64, attack_steps=2)
    cast = copy.deepcopy(net).to(dtype)
    hardened = harden(cast, train, THREAT, recipe).net
    assert (
        {p.dtype for p in hardened.parameters()} == {dtype} == {p.dtype for p in cast.parameters()}
    )
    wide_net = harden(copy.deepcopy(cast).float(), train, THREAT, recipe).net
    pairs = list(zip(*(n.state_dict().values() for n in (cast, hardened, wide_net)), strict=True))
    assert not all(torch.equal(before, after) for before, after, _ in pairs)
    if dtype is torch.float64:  # both learn, one in finer steps
        moved = max(float((before - wide).abs().max()) for before, _, wide in pairs)
        assert all(bool(((after - wide).abs() <= 0.2 * moved).all()) for _, after, wide in pairs)
    else:  # both learn in float32 from the same numbers
        assert all(torch.equal(after, wide.to(dtype)) for _, after, wide in pairs)
        assert getattr(hardened, "retrofit", None) == getattr(wide_net, "retrofit", None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_bare_module_learns_shifts_from_the_shape_of_its_examples(net, train, dtype):
    bare = deep_copy(net.module).to(dtype)
    made = harden(bare, train, THREAT, replace(BRIEF, steps=2))
    assert made.learned == 122 and {p.dtype for p in made.net.parameters()} == {dtype}
    x = train.images[:4].to(dtype)
    assert not torch.equal(made.net(x), bare(x))


def test_other_kinds_are_learned_where_they_are_named_only(train):
    body = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 10)
    )
    net = ra.Classifier(body)  # says no shape: that of the images is taken
    plain, more = (harden(net, train, THREAT, BRIEF, also=also) for also in ((), ("gelu",)))
    assert (plain.learned, more.learned) == (32 + 10, 32 + 16 + 10)
    assert more.net.retrofit.also == ("gelu",) and more.net.shape == (1, 8, 8)
    assert not any(isinstance(m, nn.GELU) for m in more.net.modules())
    with pytest.raises(ValueError, match="learns none; drop one"):
        harden(net, train, THREAT, Hardening(learn="all"), also=("gelu",))


# ------------------------------------------------------------------------------ after a kill


class Killed(BaseException):
    pass


def kill_at(step):
    def progress(done, total):
        if done == step:
            raise Killed

    return progress


def weights(made):
    learned = made.net.retrofit.activation if hasattr(made.net, "retrofit") else None
    return {k: v.clone() for k, v in made.net.state_dict().items()}, ra.show(learned)


@pytest.mark.parametrize(
    "recipe",
    [
        Hardening(learn="low-rank"),
        Hardening(ramp=0.5, average=0.6, pull=0.5),
        # parts of what the first and the second have
        pytest.param(Hardening(learn="ends"), marks=pytest.mark.long),
        pytest.param(Hardening(), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_run_that_was_killed_goes_on_with_the_same_bits(recipe, net, train, tmp_path):
    recipe = replace(recipe, steps=25, batch=50, attack_steps=1)
    train = train[:100]  # an epoch: two batches
    whole, number = weights(harden(net, train, THREAT, recipe, seed=3))
    told = []
    for step in (14, 22):
        with pytest.raises(Killed):
            harden(
                net,
                train,
                THREAT,
                recipe,
                seed=3,
                checkpoint_dir=tmp_path,
                progress=kill_at(step),
            )
    how = {"seed": 3, "checkpoint_dir": tmp_path}
    made = harden(net, train, THREAT, recipe, **how, progress=lambda done, _: told.append(done))
    assert told == [21, 22, 23, 24, 25]
    resumed, other = weights(made)
    assert number == other and resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)
    # done: nothing is learned again, unless it is to be
    told.clear()
    harden(net, train, THREAT, recipe, **how, progress=lambda done, _: told.append(done))
    assert not told
    harden(net, train, THREAT, recipe, **how, fresh=True, progress=lambda d, _: told.append(d))
    assert len(told) == 25


def test_the_checkpoint_of_another_run_is_refused(net, train, tmp_path):
    harden(net, train, THREAT, BRIEF, checkpoint_dir=tmp_path)
    other = copy.deepcopy(net)
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    runs = [
        ((other, train, THREAT, BRIEF), {}, "its net is"),
        ((net, train[1:], THREAT, BRIEF), {}, "its data is"),
        ((net, train, ra.Linf(0.05), BRIEF), {}, "its threat is"),
        ((net, train, THREAT, Hardening(steps=7, batch=64, attack_steps=2)), {}, "its recipe is"),
        ((net, train, THREAT, BRIEF), {"seed": 1}, "its seed is"),
    ]
    for what, how, said in runs:
        with pytest.raises(CheckpointError, match=said):
            harden(*what, **how, checkpoint_dir=tmp_path)
