import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import retroact as ra
from retroact.evaluation.accuracy import clean_accuracy_of
from retroact.evaluation.metrics import clean_accuracy
from retroact.nets import zoo
from retroact.nets.data import data
from retroact.training import train as home
from retroact.training.fit import Progress, UnfinishedError
from retroact.training.recipes import RECIPES, MixedFGSM, Standard
from retroact.training.train import train, train_on


@pytest.fixture(autouse=True)
def _zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETROACT_ZOO", str(tmp_path))


def test_training_by_name_writes_a_net_that_loads_with_its_page(tmp_path: Path) -> None:
    page = train("digits-cnn", epochs=12, seed=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoints",
        "digits-cnn.json",
        "digits-cnn.safetensors",
    ]
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert page == zoo.entry("digits-cnn")
    assert page.accuracy == clean_accuracy_of(zoo.load("digits-cnn"), data("digits"))
    assert page.accuracy > 0.9
    assert page.command == "retroact train digits-cnn --seed 3 --epochs 12"
    assert (page.data, page.test_n, page.validation_n) == ("digits/train", 359, 179)
    assert page.data_fingerprint == data("digits/train").fingerprint
    assert {"torch", "python", "retroact"} <= page.versions.keys()
    assert (
        json.loads((tmp_path / "digits-cnn.json").read_text())["weights_sha256"]
        == page.weights_sha256
    )


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    pages = [
        train("digits-cnn", epochs=1, seed=s, out=tmp_path / str(i))
        for i, s in enumerate((0, 0, 1))
    ]
    assert pages[0].weights_sha256 == pages[1].weights_sha256 != pages[2].weights_sha256


def test_a_stopped_training_goes_on_and_a_fresh_one_may_be_asked_for(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.epoch == 3:
            raise KeyboardInterrupt

    told: list[int] = []
    whole = train("digits-cnn", epochs=4, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train("digits-cnn", epochs=4, progress=stop)
    assert not (tmp_path / "digits-cnn.json").exists()
    resumed = train("digits-cnn", epochs=4, progress=lambda p: told.append(p.epoch))
    assert resumed.weights_sha256 == whole.weights_sha256
    assert told == [3, 4]
    with pytest.raises(KeyboardInterrupt):
        train("digits-cnn", epochs=4, progress=stop)
    train("digits-cnn", epochs=4, resume=False, progress=lambda p: told.append(p.epoch))
    assert told == [3, 4, 1, 2, 3, 4]


def test_a_training_whose_time_is_up_goes_on(tmp_path: Path) -> None:
    whole = train("digits-cnn", epochs=3, out=tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(UnfinishedError):
            train("digits-cnn", epochs=3, seconds=0.0)
    assert train("digits-cnn", epochs=3, seconds=0.0).weights_sha256 == whole.weights_sha256


def test_images_at_hand_are_trained_on_by_any_recipe(tmp_path: Path) -> None:
    splits = tuple(data(f"digits{part}") for part in ("/train", "/validation", ""))
    recipe = Standard(epochs=2, lr=0.1, batch=64)
    page = train_on(
        splits, "digits-cnn", recipe, command="as it says", seed=0, device="cpu", out=tmp_path
    )
    assert page == zoo.entry("digits-cnn")
    assert (page.recipe, page.command) == (str(recipe), "as it says")
    assert (
        page.weights_sha256 == train("digits-cnn", epochs=2, out=tmp_path / "named").weights_sha256
    )


def test_large_nets_are_measured_as_they_are_kept_in_fp16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "PACKAGE_LIMIT", 1000)
    page = train("digits-cnn", epochs=2)
    assert page.dtype == "float16"
    assert (tmp_path / "digits-cnn.safetensors").stat().st_size < 80_000
    assert page.accuracy == clean_accuracy_of(zoo.load("digits-cnn"), data("digits"))


def test_a_recipe_may_start_from_another_nets_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = train("digits-cnn", epochs=3)
    still = Standard(epochs=1, lr=1e-12, weight_decay=0.0, start="digits-cnn")
    monkeypatch.setitem(RECIPES, "digits-cnn", still)
    page = train("digits-cnn", out=tmp_path / "on")
    assert page.start_sha256 == base.weights_sha256 and "start='digits-cnn'" in page.recipe
    assert page.accuracy == base.accuracy
    with pytest.raises(zoo.ZooError, match="starts from digits-cnn, which is"):
        home._begin(zoo.NETWORKS["mnist-cnn"], "digits-cnn", 0)


def test_nothing_is_trained_on_test_or_validation_data() -> None:
    for text in ("digits", "digits/test[:100]", "digits/validation"):
        with pytest.raises(ValueError, match="use digits/train"):
            train("digits-cnn", data=text)


def test_a_part_of_the_training_split_may_be_named() -> None:
    page = train("digits-cnn", epochs=1, data="digits/train[:640]")
    assert page.data == "digits/train[:640]"
    assert page.command == "retroact train digits-cnn --seed 0 --epochs 1 --data digits/train[:640]"


def test_a_name_without_a_recipe_is_refused() -> None:
    with pytest.raises(zoo.ZooError, match="lenet-mnist"):
        train("lenet-mnst")


def test_fewer_epochs_keep_the_rest_of_a_recipe() -> None:
    lenets = ("lenet-mnist", "lenet-mnist-steps", "lenet-mnist-robust", "lenet-mnist-robust-steps")
    for name in lenets:
        shorter = home._shorten(RECIPES[name], 2)
        assert shorter.standard == replace(RECIPES[name].standard, epochs=2)
        if isinstance(shorter, MixedFGSM):
            assert (shorter.ratio, shorter.eps) == (0.3, 0.3 * 0.3081)


def test_clean_accuracy_is_that_of_the_record_and_counts_right_answers_for_any_chunk() -> None:
    digits = data("digits[:50]")
    net = zoo.NETWORKS["digits-cnn"]()
    with torch.no_grad():
        by_hand = (net(digits.images).argmax(1) == digits.labels).double().mean().item()
    record = ra.evaluate(net, digits, "FGSM", "Linf(0.01)")
    assert clean_accuracy_of(net, digits) == clean_accuracy(record) == pytest.approx(by_hand)
    assert clean_accuracy_of(net, digits, chunk=7) == clean_accuracy(record)
