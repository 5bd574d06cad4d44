"""Checkpoints as people have them: the weights are found, what was done is said, what does not fit
is named."""

import argparse
import collections
import datetime
import os
import pathlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from retroact.nets.foreign import WeightsError, fill


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def trained() -> Net:
    torch.manual_seed(5)
    net = Net().train()
    net(torch.rand(20, 1, 8, 8))
    return net.eval()


def under(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


STATE = dict(trained().state_dict())
BESIDE = {"criterion.weight": torch.ones(3)}


class Config:
    def __init__(self) -> None:
        self.width = 3


ASIDE = {
    "args": argparse.Namespace(lr=0.1, path=pathlib.Path("data"), when=datetime.date(2020, 1, 1)),
    "best": np.float64(0.9),
    "history": np.arange(3),
    "curve": collections.defaultdict(list, {"loss": [1.0]}),
    "config": Config(),
    "epoch": 90,
    "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (STATE, ()),
        (collections.OrderedDict(STATE), ()),
        ({"state_dict": STATE, **ASIDE}, ("'state_dict'",)),
        ({"model_state_dict": STATE, "epoch": 1}, ("'model_state_dict'",)),
        ({"net": under("module.", STATE), "acc": 91.2}, ("'net'", "prefix 'module.' taken off")),
        ({"model": {"params": STATE}}, ("'model.params'",)),
        (
            {"ema": {"shadow": STATE}, "params": STATE},
            ("'params'", "'ema.shadow' would fit as well"),
        ),
        ({"model_ema": STATE, "decay": 0.99}, ("'model_ema'",)),
        (under("module.", STATE), ("prefix 'module.'",)),
        (under("_orig_mod.", STATE), ("'_orig_mod.'",)),
        (under("module._orig_mod.", STATE), ("'module._orig_mod.'",)),
        (
            {
                "state_dict": under("model._orig_mod.", STATE) | BESIDE,
                "hyper_parameters": {"lr": 1},
            },
            ("'model._orig_mod.'", "left aside: criterion.weight"),
        ),
        (
            {
                "state_dict": under("net.", STATE)
                | {"train_acc.correct": torch.zeros(1), "head.weight": torch.ones(2)}
            },
            ("prefix 'net.'", "left aside: head.weight, train_acc.correct"),
        ),
        (
            under("module.model.", STATE)
            | {"module.normalizer.new_mean": torch.zeros(3)}
            | under("module.attacker.model.", STATE),
            ("'module.model.'", "module.attacker.* (9), module.norm"),
        ),
        (
            STATE | BESIDE | under("ema_model.", STATE),
            ("left aside: criterion.weight, ema_model.* (9)",),
        ),
        (under("resnet.", STATE), ("prefix 'resnet.' taken off",)),
        (under("resnet.", STATE) | BESIDE, ("'resnet.'", "criterion.weight")),
        (
            {k.replace("features.", "features.module."): v for k, v in STATE.items()},
            ("module.", "taken off"),
        ),
        (
            {k.replace("fc.", "fc._orig_mod."): v for k, v in STATE.items()},
            ("_orig_mod.", "taken off"),
        ),
        (
            {k: v for k, v in STATE.items() if "num_batches" not in k},
            ("not in the file, so as the net was built: features.1.num_batches_tracked",),
        ),
        (STATE | {"features.1.num_batches_tracked": torch.zeros(1, dtype=torch.int64)}, ()),
        (
            STATE | {"fc.num_batches_tracked": torch.tensor(3)},
            ("left aside: fc.num_batches_tracked",),
        ),
        (
            {k: v.half().double() for k, v in STATE.items() if v.is_floating_point()},
            ("as the net was built",),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_weights_are_found_where_trainers_leave_them(
    tmp_path: Path, content: Any, says: tuple[str, ...]
) -> None:
    torch.save(content, tmp_path / "c.pth")
    net = Net().eval()
    notes = fill(net, tmp_path / "c.pth")
    assert torch.allclose(net(X), trained()(X), atol=1e-3)
    assert all(any(word in note for note in notes) for word in says), notes
    assert bool(notes) == bool(says) and all(note.startswith("c.pth: ") for note in notes)


@pytest.mark.parametrize("wrap", ["module", "_orig_mod", "model"])
def test_a_net_that_is_itself_wrapped_takes_bare_weights_and_wrapped_ones(
    tmp_path: Path, wrap: str
) -> None:
    torch.save(STATE, tmp_path / "bare.pt")
    torch.save(under("module.", STATE), tmp_path / "wrapped.pt")
    for name in ("bare.pt", "wrapped.pt"):
        wrapped: nn.Module = nn.Module()
        wrapped.add_module(wrap, inner := Net().eval())
        if wrap == "_orig_mod":
            inner = Net().eval()
            wrapped = torch.compile(inner, backend="eager")  # type: ignore[assignment]
        fill(wrapped, tmp_path / name)
        assert torch.equal(inner(X), trained()(X))


def test_what_a_net_ties_or_expands_is_filled_too(tmp_path: Path) -> None:
    class Odd(Net):
        def __init__(self, tie: bool = True) -> None:
            super().__init__()
            self.more = nn.Linear(4, 10)
            if tie:
                self.more.weight = self.fc.weight
            self.register_buffer("wide", torch.zeros(1).expand(7) if tie else torch.zeros(7))
            self.register_buffer("ids", torch.arange(4), persistent=not tie)

    state = {k: torch.ones_like(v) for k, v in Odd().state_dict().items()}
    # as writers of safetensors leave one of two out
    for left_out in ((), ("more.weight",), ("fc.weight",)):
        save_file(
            {k: v for k, v in state.items() if k not in left_out}, tmp_path / "odd.safetensors"
        )
        net = Odd()
        fill(net, tmp_path / "odd.safetensors")
        assert (
            net.more.weight is net.fc.weight
            and bool((net.fc.weight == 1).all())
            and bool((net.wide == 1).all())
        )
    torch.save(Odd(tie=False).state_dict(), tmp_path / "untied.pt")
    with pytest.raises(
        WeightsError, match=r"more\.weight and fc\.weight are one tensor of the net and differ"
    ):
        fill(Odd(), tmp_path / "untied.pt")
    torch.save(state | {"ids": torch.arange(4)}, tmp_path / "ids.pt")
    assert fill(Odd(), tmp_path / "ids.pt") == ("ids.pt: left aside: ids",)


def test_rounding_is_said(tmp_path: Path) -> None:
    torch.save(
        {k: v.double() + 1e-12 if v.is_floating_point() else v for k, v in STATE.items()},
        tmp_path / "d.pt",
    )
    (note,) = fill(Net(), tmp_path / "d.pt")
    assert "rounded from float64 to float32" in note
    assert fill(Net().double(), tmp_path / "d.pt") == ()
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in STATE.items()},
        tmp_path / "h.safetensors",
    )
    assert fill(Net(), tmp_path / "h.safetensors") == ()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({k: v for k, v in STATE.items() if k != "fc.bias"}, r"missing fc\.bias"),
        (
            {k: v for k, v in STATE.items() if "running_mean" not in k},
            r"missing features\.1\.running_mean",
        ),
        (
            {"state_dict": under("module.", STATE) | {"module.fc2.bias": torch.ones(3)}},
            r"\(under 'state_dict'\) \(without 'module\.'\) does not fit Net: "
            r"unknown module\.fc2\.bias",
        ),
        (STATE | {"features.3.weight": torch.ones(3)}, r"unknown features\.3\.weight"),
        (STATE | {"conv2.weight": torch.ones(3)}, r"unknown conv2\.weight"),
        (STATE | {"fc.weight": torch.ones(7, 4)}, r"fc\.weight is \(7, 4\), expected \(10, 4\)"),
        (
            STATE | {"fc.weight": torch.ones(10, 4, dtype=torch.int8)},
            r"fc\.weight is torch\.int8, expected",
        ),
        (under("encoder.", STATE) | {"decoder.weight": torch.ones(3)}, r"unknown decoder\.weight"),
        ({"a": {"w": torch.ones(3)}, "b": [torch.ones(3)]}, r"missing"),
        ({"epoch": 3, "lr": 0.1}, r"expected a state dict of tensors, got dict with epoch, lr"),
        ([1, 2], r"expected a state dict of tensors, got list"),
        (trained(), r"was refused.*asks for .*Net.*torch\.save\(net\.state_dict"),
        ({"config": Config()}, r"was refused.*asks for .*Config"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_says_what_is_missing(tmp_path: Path, content: Any, says: str) -> None:
    torch.save(content, tmp_path / "c.pth")
    net = Net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(WeightsError, match=says):
        fill(net, tmp_path / "c.pth")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


class Bomb:
    def __init__(self, *what: Any) -> None:
        self.what = what

    def __reduce__(self) -> Any:
        return self.what


@pytest.mark.parametrize(
    "how", [os.mkdir, os.makedirs, Path.touch, pathlib.Path, open], ids=lambda f: f.__name__
)
def test_nothing_that_lies_beside_the_weights_runs(tmp_path: Path, how: Any) -> None:
    """Whether a file is refused or read for its weights, no code of it runs."""
    mark = tmp_path / "it-ran"
    bomb = Bomb(
        how, (str(mark), "w") if how is open else (mark if how is Path.touch else str(mark),)
    )
    for name, content in (
        ("beside", {"state_dict": STATE, "b": bomb}),
        ("in", STATE | {"fc.bias": bomb}),
        ("it", bomb),
    ):
        torch.save(content, tmp_path / f"{name}.pt")
        net = Net().eval()
        if name == "beside" and how in (pathlib.Path, open):
            fill(net, tmp_path / f"{name}.pt")
            assert torch.equal(net(X), trained()(X))
        else:
            with pytest.raises(WeightsError, match=r"was refused|missing fc\.bias"):
                fill(net, tmp_path / f"{name}.pt")
    assert not mark.exists()
