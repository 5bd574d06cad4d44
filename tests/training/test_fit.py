import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from retroact.files import CheckpointError
from retroact.nets.classifier import Classifier
from retroact.nets.data import Images
from retroact.training import convolutions
from retroact.training import fit as home
from retroact.training.batches import Batches, order, seed_of
from retroact.training.convolutions import WeightsByMatmul
from retroact.training.fit import DivergenceError, Progress, UnfinishedError, fit
from retroact.training.recipes import Adversarial, MixedFGSM, Recipe, Standard
from retroact.training.resuming import FILE, read_checkpoint

QUICK = Standard(epochs=3, lr=0.05, batch=32, schedule="one-cycle")


def _images(n: int = 200, seed: int = 0) -> Images:
    """Bright upper halves against bright lower halves, with noise: learnt in a few steps."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    x = 0.5 * torch.rand(n, 1, 8, 8, generator=generator)
    x[labels == 0, :, :4] += 0.3
    x[labels == 1, :, 4:] += 0.3
    return Images.of(x, labels, name="halves", split="train")


def _net(seed: int = 0) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inner = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(144, 2),
        )
        return Classifier(inner, 0.5, 0.25)


def _weights(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------------------------------- learning


MEAN = replace(QUICK, averaged=2)


@pytest.mark.parametrize(
    "recipe",
    [QUICK, MEAN, MixedFGSM(QUICK, ratio=0.5, eps=0.05), Adversarial(QUICK, eps=0.05, steps=2)],
    ids=str,
)
def test_it_learns_and_ends_in_eval_mode(recipe: Recipe) -> None:
    net = fit(_net(), _images(), recipe)
    held = _images(100, seed=1)
    assert (net(held.images).argmax(1) == held.labels).float().mean() > 0.95
    assert not any(m.training for m in net.modules())


def test_it_is_sgd_with_momentum_and_weight_decay() -> None:
    recipe = Standard(
        epochs=2, lr=0.1, batch=100, momentum=0.9, weight_decay=0.01, schedule="constant"
    )
    images = _images(100)
    torch.manual_seed(0)
    by_hand = nn.Linear(64, 2)
    torch.manual_seed(0)
    start = nn.Linear(64, 2)
    net = Classifier(nn.Sequential(nn.Flatten(), start))
    fit(net, images, recipe)
    velocity = [torch.zeros_like(p) for p in by_hand.parameters()]
    for _ in range(2):
        loss = nn.functional.cross_entropy(by_hand(images.images.flatten(1)), images.labels)
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for p, v, g in zip(by_hand.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(g + 0.01 * p)
                p.sub_(0.1 * v)
    torch.testing.assert_close(start.weight, by_hand.weight)
    torch.testing.assert_close(start.bias, by_hand.bias)


def test_the_mean_of_the_last_epochs_is_kept_with_statistics_of_its_own() -> None:
    net, ends = _net(), []

    def look(progress: Progress) -> None:
        if progress.step == progress.steps:
            ends.append(_weights(net))

    fit(net, _images(), MEAN, progress=look)
    for name, p in net.named_parameters():
        assert torch.allclose(
            p, (ends[1][name] + ends[2][name]) / 2, atol=1e-6
        ) and not torch.equal(p, ends[2][name])
    inputs = net.module[0]((_images().images - 0.5) / 0.25)
    assert torch.allclose(net.module[1].running_mean, inputs.mean((0, 2, 3)), atol=0.03)
    assert not torch.allclose(ends[2]["module.1.running_mean"], inputs.mean((0, 2, 3)), atol=0.03)


def test_the_same_seed_gives_the_same_bits_and_another_gives_others() -> None:
    once, again, other = (_weights(fit(_net(), _images(), QUICK, seed=s)) for s in (0, 0, 1))
    assert _same(once, again)
    assert not _same(once, other)


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(_net(), _images(), replace(QUICK, epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_progress_is_told_to_the_end() -> None:
    told: list[Progress] = []
    fit(_net(), _images(), QUICK, progress=told.append)
    assert [p.epoch for p in told] == [1, 2, 3]
    assert (told[-1].step, told[-1].steps, told[-1].fraction) == (6, 6, 1.0)
    assert told[-1].loss < told[0].loss


@pytest.mark.parametrize(
    "recipe", [replace(QUICK, bf16=True), replace(QUICK, channels_last=True)], ids=str
)
def test_bf16_and_channels_last_train_to_the_same_end(recipe: Standard) -> None:
    for variant in (
        recipe,
        MixedFGSM(recipe, ratio=0.5, eps=0.05),
        Adversarial(recipe, eps=0.05, steps=2),
    ):
        net = fit(_net(), _images(), variant)
        assert next(net.parameters()).dtype == torch.float32
        held = _images(100, seed=1)
        assert (net(held.images).argmax(1) == held.labels).float().mean() > 0.95


def test_strided_depthwise_convolutions_leave_bf16_for_as_long_as_it_trains() -> None:
    seen: dict[str, list[torch.dtype]] = {"strided": [], "not": []}
    inner = nn.Sequential(
        nn.Conv2d(1, 4, 1),
        nn.Conv2d(4, 4, 3, stride=2, groups=4, padding=1),
        nn.Conv2d(4, 4, 3, groups=4, padding=1),
        nn.Flatten(),
        nn.Linear(64, 2),
    )
    inner[1].register_forward_hook(lambda _m, _x, out: seen["strided"].append(out.dtype))
    inner[2].register_forward_hook(lambda _m, _x, out: seen["not"].append(out.dtype))
    net = fit(Classifier(inner, 0.5, 0.25), _images(), replace(QUICK, bf16=True))
    assert set(seen["strided"]) == {torch.float32}
    assert set(seen["not"]) == {torch.bfloat16}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(_images().images)
    assert seen["strided"][-1] == torch.bfloat16, "a trained net is as it was"


@pytest.mark.parametrize(
    ("stride", "padding"), [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 2), (0, 2))], ids=str
)
@pytest.mark.parametrize("biased", [True, False])
def test_gradients_from_one_product_are_the_convolutions(
    stride: tuple[int, int], padding: tuple[int, int], biased: bool
) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(3, 4, 7, 6, dtype=torch.double), torch.randn(5, 4, 3, 2, dtype=torch.double)
    b = torch.randn(5, dtype=torch.double) if biased else None
    leaves = [t.requires_grad_() for t in (x, w, b) if t is not None]
    plain = torch.nn.functional.conv2d(x, w, b, stride, padding)
    ours = cast(Tensor, WeightsByMatmul.apply(x, w, b, stride, padding))
    toward = torch.randn_like(plain)
    expected, gradients = (torch.autograd.grad(y, leaves, toward) for y in (plain, ours))
    assert torch.equal(plain, ours)
    for e, f in zip(expected, gradients, strict=True):
        torch.testing.assert_close(f, e)


def test_large_weights_take_their_gradient_from_one_product_for_as_long_as_it_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    products: list[tuple[int, ...]] = []
    patches = convolutions.patches_of

    def counted(*given: Any) -> Tensor:
        rows = patches(*given)
        products.append(tuple(rows.shape))
        return rows

    monkeypatch.setattr(convolutions, "patches_of", counted)
    inner = nn.Sequential(
        nn.Conv2d(1, 256, 1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d((2, 1)),
        nn.Flatten(),
        nn.Linear(512, 2),
    )
    plan = replace(QUICK, bf16=True, epochs=2)
    images = _images(64)
    fit(Classifier(copy.deepcopy(inner), 0.5, 0.25), images, replace(plan, bf16=False))
    assert not products
    net = fit(Classifier(inner, 0.5, 0.25), images, MixedFGSM(plan, ratio=0.5, eps=0.05))
    side = images.images.shape[-1]
    steps = 2 * (64 // plan.batch)
    assert products == [(plan.batch * side * side, 9 * 256)] * steps, (
        "one a step, none for the FGSM images"
    )
    assert "forward" not in vars(inner[2])
    assert (net(images.images).argmax(1) == images.labels).float().mean() > 0.9


def test_a_float64_net_with_such_a_convolution_trains_in_float64() -> None:
    inner = nn.Sequential(
        nn.Conv2d(1, 4, 1),
        nn.Conv2d(4, 4, 3, stride=2, groups=4, padding=1),
        nn.Flatten(),
        nn.Linear(64, 2),
    )
    net = fit(Classifier(inner, 0.5, 0.25).double(), _images(), QUICK)
    assert next(net.parameters()).dtype == torch.float64


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_the_first_epochs_see_smaller_images(ratio: float) -> None:
    sides: list[int] = []
    inner = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(8, 2)
    )
    inner[0].register_forward_pre_hook(
        lambda _m, x: sides.append(x[0].shape[-1]) if inner.training else None
    )
    plan = replace(QUICK, epochs=6, sizes=(4, 6), lr=0.2)
    net = fit(
        Classifier(inner, 0.5, 0.25, shape=(1, 8, 8)),
        _images(),
        MixedFGSM(plan, ratio=ratio, eps=0.05),
    )
    assert net.shape == (1, 8, 8), "which it knows again"
    assert sides == [4] * 6 + [6] * 6 + [8] * 24
    held = _images(100, seed=1)
    assert (net(held.images).argmax(1) == held.labels).float().mean() > 0.95


def test_a_smaller_image_keeps_each_part_of_the_picture_and_its_range() -> None:
    x = torch.zeros(2, 1, 8, 8)
    x[:, :, :4] = 1.0
    plan = replace(QUICK, sizes=(4,), batch=2)
    batches = Batches(Images.of(x, [0, 1]), plan, 0, "cpu")
    small = batches.resize(x, 0)
    assert small.shape == (2, 1, 4, 4)
    assert small.mean() == pytest.approx(0.5)
    assert (small[:, :, 0] > 0.99).all()
    assert (small[:, :, 3] < 0.01).all()
    assert batches.resize(x, 1) is x


class _Looks(TorchDispatchMode):
    """Counts the calls that wait until the device has come to a number."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", [QUICK, MixedFGSM(QUICK), Adversarial(QUICK, steps=3)], ids=type)
def test_training_looks_at_a_number_now_and_then_and_not_at_every_step(recipe: Recipe) -> None:
    plan = replace(recipe.standard, epochs=1, batch=2, augment=True)
    adversarial = recipe is not recipe.standard
    whole = replace(recipe, standard=plan) if adversarial else plan
    seen: list[Progress] = []
    net, images = _net(), _images(200)  # whose own checks look at numbers, once
    with _Looks() as looks:
        fit(net, images, whole, progress=seen.append)
    assert [p.step for p in seen] == [50, 100]
    assert looks.count < 10


def test_too_few_images_and_a_loss_that_explodes_are_said() -> None:
    with pytest.raises(ValueError, match="make no batch of 32"):
        fit(_net(), _images(20), QUICK)
    with pytest.raises(DivergenceError, match="lower lr"):
        fit(_net(), _images(), replace(QUICK, lr=1e30, schedule="constant"))


# ----------------------------------------------------------------------------------------- batches


def test_an_epoch_takes_every_image_at_most_once_and_each_epoch_its_own_order() -> None:
    first, second = (torch.cat(list(order(100, 32, 0, epoch))) for epoch in (0, 1))
    assert len(first) == len(set(first.tolist())) == 96
    assert not torch.equal(first, second)
    assert seed_of(0, 1) != seed_of(1, 0)


def test_augmented_images_are_crops_of_the_padded_image_or_their_mirrors() -> None:
    plan = replace(QUICK, augment=True)
    x = torch.rand(40, 2, 6, 6)
    given = Images.of(x, [0] * len(x))
    out = Batches(given, plan, 0, "cpu").augment(x)
    assert out.shape == x.shape
    padded = nn.functional.pad(x, (4, 4, 4, 4))
    mirrored = 0
    for i in range(len(x)):
        crops = (
            padded[i].unfold(1, 6, 1).unfold(2, 6, 1).permute(1, 2, 0, 3, 4).reshape(-1, 2, 6, 6)
        )
        plain = bool((crops == out[i]).flatten(1).all(1).any())
        mirror = bool((crops == out[i].flip(-1)).flatten(1).all(1).any())
        assert plain or mirror
        mirrored += not plain
    assert 5 < mirrored < 35
    assert Batches(given, QUICK, 0, "cpu").augment(x) is x


# -------------------------------------------------------------------------------- checkpoints, kill


def _stop_after(epochs: int) -> Callable[[Progress], None]:
    def look(progress: Progress) -> None:
        if progress.epoch > epochs:
            raise KeyboardInterrupt

    return look


@pytest.mark.parametrize(
    "recipe",
    [QUICK, MEAN, MixedFGSM(QUICK, ratio=0.5, eps=0.05), Adversarial(QUICK, eps=0.05, steps=2)],
    ids=str,
)
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, recipe: Recipe) -> None:
    whole = _weights(fit(_net(), _images(), recipe))
    with pytest.raises(KeyboardInterrupt):
        fit(_net(), _images(), recipe, checkpoint_dir=tmp_path, progress=_stop_after(2))
    told: list[Progress] = []
    resumed = fit(_net(seed=9), _images(), recipe, checkpoint_dir=tmp_path, progress=told.append)
    assert _same(_weights(resumed), whole)
    assert [p.epoch for p in told] == [3]
    assert os.listdir(tmp_path) == [FILE]


_LONG = MixedFGSM(replace(QUICK, epochs=6), ratio=0.5, eps=0.05)
_SLOWLY = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
from test_fit import _LONG, _images, _net, fit
torch.set_num_threads(1)
fit(_net(), _images(), _LONG, checkpoint_dir=sys.argv[2], progress=lambda _: time.sleep(0.3))
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_run_killed_with_sigkill_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    killed = subprocess.Popen(
        [sys.executable, "-c", _SLOWLY, str(Path(__file__).parent), str(tmp_path)]
    )
    checkpoint = tmp_path / FILE
    deadline = time.monotonic() + 60
    while not (checkpoint.exists() and _epochs_in(checkpoint) >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert 2 <= _epochs_in(checkpoint) < 6
    resumed = fit(_net(seed=9), _images(), _LONG, checkpoint_dir=tmp_path)
    assert _same(_weights(resumed), _weights(fit(_net(), _images(), _LONG)))


def _epochs_in(path: Path) -> int:
    with safetensors.safe_open(path, framework="pt") as file:
        return int(json.loads(file.metadata()["run"])["epochs"])


@pytest.mark.parametrize("recipe", [QUICK, MEAN], ids=str)
def test_a_finished_run_is_not_run_again(tmp_path: Path, recipe: Recipe) -> None:
    whole = _weights(fit(_net(), _images(), recipe, checkpoint_dir=tmp_path))
    told: list[Progress] = []
    assert _same(
        _weights(fit(_net(), _images(), recipe, checkpoint_dir=tmp_path, progress=told.append)),
        whole,
    )
    assert told == []


def test_a_run_whose_time_is_up_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = _weights(fit(_net(), _images(), QUICK))
    for behind in (1, 2):
        with pytest.raises(UnfinishedError, match=f"{behind} of 3 epochs are behind; train again"):
            fit(_net(), _images(), QUICK, checkpoint_dir=tmp_path, seconds=0.0)
        assert _epochs_in(tmp_path / FILE) == behind
    assert _same(
        _weights(fit(_net(), _images(), QUICK, checkpoint_dir=tmp_path, seconds=0.0)), whole
    )


def test_an_epoch_begins_only_where_the_longest_so_far_would_still_end_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([0.0, 0.0, 4.0, 4.0, 5.0, 5.0, 6.0, 6.0])
    monkeypatch.setattr(home.time, "monotonic", lambda: next(now))
    run = home._in_time(3, 10, 9.5)
    assert [next(run), next(run), next(run)] == [3, 4, 5], "at 0, 4 and 5, and each might take 4"
    with pytest.raises(UnfinishedError, match="6 of 10"):
        next(run)


def test_a_time_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="give checkpoint_dir="):
        fit(_net(), _images(), QUICK, seconds=60.0)


def test_a_checkpoint_of_rounded_weights_without_momentum_goes_on(tmp_path: Path) -> None:
    with pytest.raises(UnfinishedError):
        fit(_net(), _images(), QUICK, checkpoint_dir=tmp_path, seconds=0.0)
    facts, tensors = read_checkpoint(tmp_path / FILE)
    thin = {
        k: v.half() if v.is_floating_point() else v
        for k, v in tensors.items()
        if k.startswith("net.")
    }
    safetensors.torch.save_file(thin, tmp_path / FILE, metadata={"run": json.dumps(facts)})
    net = fit(_net(seed=9), _images(), QUICK, checkpoint_dir=tmp_path)
    held = _images(100, seed=1)
    assert (net(held.images).argmax(1) == held.labels).float().mean() > 0.95


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    fit(_net(), _images(), QUICK, checkpoint_dir=tmp_path)
    with pytest.raises(CheckpointError, match=r"its recipe is Standard\(epochs=3"):
        fit(_net(), _images(), replace(QUICK, epochs=4), checkpoint_dir=tmp_path)
    with pytest.raises(CheckpointError, match="its seed is 0, this one's is 1"):
        fit(_net(), _images(), QUICK, seed=1, checkpoint_dir=tmp_path)
    with pytest.raises(CheckpointError, match="its data is"):
        fit(_net(), _images(seed=3), QUICK, checkpoint_dir=tmp_path)
    with pytest.raises(CheckpointError, match="does not fit this net"):
        fit(
            Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 2))),
            _images(),
            QUICK,
            checkpoint_dir=tmp_path,
        )


@pytest.mark.parametrize(
    "raw", [b"", b"\x10\x00", b"PK\x03\x04 a foreign file that is long enough"]
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / FILE).write_bytes(raw)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        fit(_net(), _images(), QUICK, checkpoint_dir=tmp_path)


def test_a_safetensors_file_of_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(3)}, tmp_path / FILE)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        fit(_net(), _images(), QUICK, checkpoint_dir=tmp_path)
