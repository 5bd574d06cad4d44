"""Networks on another device than the CPU: nothing mixes the two, and what is found there is what
is found here."""

import contextlib
import copy
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended import NAME, pretended

import retroact as ra
from retroact.cli import main
from retroact.crafting.attack import Attack
from retroact.crafting.driver import craft
from retroact.crafting.sending import Ahead
from retroact.spec import known

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from gpu_checks import checks
from syncs import count

SHORT = {"steps": 5, "queries": 20, "draws": 3, "repeats": 2, "search_steps": 2}
SHORT |= {"samples": 8}
FOREIGN = ("AutoAttack", "Foolbox")


def images() -> ra.Images:
    """Blocks of colour, drawn evenly, and what the packaged network takes them for."""
    coarse = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)
    return ra.Images.of(x, ra.load("cifar10-cnn1")(x).argmax(1), name="cifar10")


def fewer(attack: Attack) -> ra.Images:
    """One image for what asks about every pixel of it, as `PixelSearch` does."""
    return images()[:1] if attack.passes > 1000 else images()


def attacks() -> Iterator[tuple[Any, Any]]:
    """Every attack of ours, shortened, under each norm it serves."""
    for cls in known(Attack):
        if cls.__module__.startswith("retroact.attacks") and cls.__name__ not in FOREIGN:
            attack = cls(
                **{k: v for k, v in SHORT.items() if k in inspect.signature(cls).parameters}
            )
            threats = ra.Linf(4 / 255), ra.L2(1.0), ra.L1(20.0)
            yield from ((attack, t) for t in threats if t.norm in attack.norms)


def test_the_pretended_device_refuses_what_a_real_one_refuses() -> None:
    with pretended():
        there, here = torch.rand(3, device=NAME), torch.rand(3)
        for mix in (
            lambda: there + here,
            lambda: here[there > 0.5],
            lambda: there.index_put_((here > 0,), here),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mix()
        assert there.device.type == NAME and there.cpu().device.type == "cpu"
        assert torch.equal((there * 2).cpu(), there.cpu() * 2)
        with pytest.raises((TypeError, RuntimeError)):
            there.numpy()


ONCE = {type(attack): (attack, threat) for attack, threat in attacks()}.values()  # its last norm
FIRST = {type(attack): (attack, threat) for attack, threat in reversed([*attacks()])}.values()
"""Every attack is asked both of the next questions, where it has several norms in another one each:
a case takes seconds."""


@pytest.mark.parametrize(("attack", "threat"), ONCE, ids=str)
def test_an_attack_finds_the_same_on_a_device(attack: Any, threat: Any) -> None:
    here, data = ra.load("cifar10-cnn1"), fewer(attack)
    # as a function, so that it is attacked in the memory format that it has on the device too
    expected = ra.evaluate(lambda x: here(x), data, attack, threat)
    with pretended():
        found = ra.evaluate(copy.deepcopy(here).to(NAME), data, attack, threat)
    assert (found.adversarial == expected.adversarial).all() and (
        found.gradients == expected.gradients
    ).all()
    assert abs(found.distance - expected.distance).max() < 1e-4


@pytest.mark.parametrize(("attack", "threat"), FIRST, ids=str)
def test_an_attack_waits_for_its_device_once_in_a_pass(attack: Any, threat: Any) -> None:
    waits, passes = count(attack, threat, ra.load("cifar10-cnn1"), fewer(attack))
    # RayS looks for what is broken and for rounds that are over, and waits again where it finds one
    by_pass = 1.5 if isinstance(attack, ra.RayS) else 1.0
    # and for who is to be attacked, and for what is brought back
    assert sum(waits.values()) <= by_pass * passes + 3, waits


def test_an_attack_whose_steps_are_fixed_does_not_wait_for_them() -> None:
    def once(steps: int) -> int:
        attack = ra.CarliniWagner(steps=steps, search_steps=2)
        return sum(count(attack, ra.L2(1.0), ra.load("cifar10-cnn1"), images())[0].values())

    assert once(4) == once(12)


def test_the_next_images_are_asked_for_while_the_present_ones_are_attacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    send, call = Ahead._send, ra.BIM.__call__

    def sent(self: Ahead, rows: slice) -> Any:
        told.append(f"ask {rows.start}:{rows.stop}")
        return send(self, rows)

    def attacked(self: ra.BIM, scene: Any) -> Any:
        told.append(f"attack {int(scene.index[0].cpu())}")
        made = call(self, scene)
        told.append("ended")
        return made

    here, data = ra.load("cifar10-cnn1"), images()
    run = (data.images, data.labels, data.index, ra.Linf(4 / 255))
    expected = craft(ra.BIM(steps=3), lambda x: here(x), *run, chunk=8)
    monkeypatch.setattr(Ahead, "_send", sent)
    monkeypatch.setattr(ra.BIM, "__call__", attacked)
    with pretended():
        found = craft(ra.BIM(steps=3), copy.deepcopy(here).to(NAME), *run, chunk=3)
    assert told == [
        *("ask 0:3", "ask 3:6", "attack 0", "ended"),
        *("ask 6:8", "attack 3", "ended"),
        *("attack 6", "ended"),
    ]
    assert torch.equal(found.x_adv, expected.x_adv)
    assert torch.equal(found.gradients, expected.gradients)


def test_what_a_device_has_no_room_for_is_sent_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(10.0)
    to = Ahead._sent

    def sent(self: Ahead, parts: tuple[torch.Tensor, ...]) -> Any:
        if len(parts[0]) > 2:
            raise torch.OutOfMemoryError("no room")
        return to(self, parts)

    monkeypatch.setattr(Ahead, "_sent", sent)
    with pretended():
        device = torch.device(NAME)
        rows = Ahead(device, 4, tensor).take(slice(4, 8))
        (part,) = rows.at(slice(6, 8), device)
        assert part.device.type == NAME and part.tolist() == [6.0, 7.0]


def test_crafting_in_bfloat16_is_known_on_a_device() -> None:
    """The pretended one has no autocast, so all is as in float32."""
    here, data = ra.load("cifar10-cnn1"), images()
    run = (data, "PGD(steps=5)", ra.Linf(4 / 255))
    with pretended():
        there = copy.deepcopy(here).to(NAME)
        assert ra.evaluate(there, *run, crafting="bfloat16") == ra.evaluate(there, *run)


CHECKS = dict(checks("cpu", images()))
# the commands below audit and tune on a device, too
TOLD = [
    pytest.param(name, marks=[pytest.mark.long] * (name in ("audit", "tune")))
    for name in CHECKS
    if " under " not in name
]


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
@pytest.mark.filterwarnings("ignore:.*no-op")  # torch's word on weights loaded into `meta`
@pytest.mark.parametrize("name", TOLD)
def test_a_check_passes_on_a_device(name: str) -> None:
    with pretended():
        found: dict[str, Callable[[], str]] = dict(checks(NAME, images()))
        assert found[name]()


@pytest.mark.parametrize("learn", ["shifts", "kappa", "slopes", "ends"])
def test_what_is_learned_lies_where_the_network_lies(learn: str) -> None:
    recipe = ra.Hardening(learn=learn, steps=2, batch=8)  # type: ignore[arg-type]
    train, net = replace(images(), split="train"), ra.load("cifar10-cnn1")
    expected = ra.harden(net, train, ra.Linf(2 / 255), recipe).net(train.images)
    with pretended():
        made = ra.harden(copy.deepcopy(net).to(NAME), train, ra.Linf(2 / 255), recipe).net
        assert {p.device.type for p in made.parameters()} == {NAME}
        torch.testing.assert_close(
            made(train.images.to(NAME)).cpu(), expected, rtol=1e-4, atol=1e-4
        )


COMMANDS = (
    # both sides in this thread, where the device is pretended
    ("audit", "digits-cnn", "SReLU(10)", "--threat", "Linf(0.1)", "--quick", "--workers", "1"),
    ("check", "digits-cnn", "--threat", "Linf(0.1)", "--quick", "--reported", "60"),
    ("tune", "digits-cnn", "JumpReLU", "--threat", "Linf(0.1)", "--grid", "0.5", "--json"),
    ("calibrate", "digits-cnn", "MeanSparse", "--out", "n.safetensors", "--json"),
    ("harden", "digits-cnn", "--threat", "Linf(0.1)", "--steps", "2", "--batch", "16", "--json"),
    ("attack", "digits-cnn", "FGSM", "--threat", "Linf(0.1)", "--store", "s.sqlite"),
)
DATA = {"tune": "digits/validation[:20]", "harden": "digits/train", "calibrate": "digits/train"}


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
@pytest.mark.filterwarnings("ignore:.*no-op")
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: str(words[0]))
def test_a_command_says_the_same_on_a_device(
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = DATA.get(words[0], "digits[:12]")
    monkeypatch.chdir(tmp_path)

    def run(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["retroact", *words, "--data", data, *more])
        with contextlib.suppress(SystemExit):
            main()
        for path in tmp_path.iterdir():
            path.unlink()
        return re.sub(r'"seconds": .*', "", capsys.readouterr().out)

    expected = run()
    with pretended():
        assert run("--device", NAME) == expected != ""
