"""What is exported computes what torch computes, for any batch size."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from retroact.activations.kwta import KWTA
from retroact.activations.mean_sparse import MeanSparse
from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import JumpReLU, SReLU
from retroact.activations.polynomial import Polynomial
from retroact.activations.quantized import QuantizedReLU
from retroact.retrofitting.export import Exported, export
from retroact.retrofitting.surgery import retrofit
from retroact.training.calibrating import calibrate

IMAGES = torch.rand(300, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def net(act=nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 8, 3),
        act(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(200, 32),
        act(),
        nn.Linear(32, 10),
    ]
    made = nn.Sequential(*layers).eval()
    made.shape = (1, 12, 12)
    return made


JUMP_AND_SLOPE = PerSite((JumpReLU(0.2), SReLU(3.0)))


@pytest.fixture(scope="module")
def jump_and_slope(tmp_path_factory) -> Exported:
    """An ONNX file, which takes a second or two."""
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    return export(retrofit(net(), JUMP_AND_SLOPE), path, images=IMAGES)


def assert_agrees(done: Exported, file: Path) -> None:
    assert isinstance(done, Exported)
    assert (done.n, done.agreement) == (300, 1.0)
    assert done.max_difference < 1e-4
    assert list(file.parent.iterdir()) == [file]


def test_an_onnx_file_agrees_with_torch_on_any_batch(jump_and_slope) -> None:
    assert_agrees(jump_and_slope, jump_and_slope.path)


@pytest.mark.parametrize(
    ("act", "suffix"),
    [
        (nn.ReLU, ".pt2"),
        (nn.ReLU6, ".pt2"),
        pytest.param(nn.ReLU6, ".onnx", marks=pytest.mark.long),
    ],
)
def test_the_file_agrees_with_torch_on_any_batch(tmp_path, suffix: str, act) -> None:
    path = tmp_path / f"net{suffix}"
    assert_agrees(export(retrofit(net(act), JUMP_AND_SLOPE), path, images=IMAGES), path)


@pytest.mark.parametrize(
    ("activation", "suffix"),  # each in one format, what is measured in both
    [
        (QuantizedReLU(3, 2.0), ".pt2"),
        (KWTA(0.3), ".pt2"),
        pytest.param(KWTA(0.3), ".onnx", marks=pytest.mark.long),
        (Polynomial(1.0), ".pt2"),
        (MeanSparse(0.3), ".onnx"),
        (MeanSparse(0.3), ".pt2"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_so_does_every_staircase_and_what_is_measured(tmp_path, suffix: str, activation) -> None:
    if isinstance(activation, MeanSparse):
        labels = torch.zeros(len(IMAGES), dtype=torch.int64)
        activation = calibrate(net(), activation, (IMAGES, labels))
    done = export(retrofit(net(), activation), tmp_path / f"net{suffix}", images=IMAGES)
    # rounding of floats may lift a unit over a jump
    assert done.agreement >= 0.99


def test_a_jump_is_one_operator(jump_and_slope) -> None:
    import onnx

    nodes = onnx.load(jump_and_slope.path).graph.node
    kinds = {n.op_type for n in nodes}
    assert {"ThresholdedRelu", "Relu"} <= kinds
    assert not {"LessOrEqual", "Where"} & kinds
    alphas = [n.attribute[0].f for n in nodes if n.op_type == "ThresholdedRelu"]
    assert alphas == [pytest.approx(0.2)]


def test_at_kappa_itself_the_file_gives_zero(tmp_path) -> None:
    import onnxruntime

    bare = nn.Sequential(nn.ReLU())
    export(
        retrofit(bare, JumpReLU(0.5), example=torch.rand(2, 3)),
        tmp_path / "jump.onnx",
        torch.rand(2, 3),
    )
    session = onnxruntime.InferenceSession(tmp_path / "jump.onnx")
    z = torch.tensor([[0.25, 0.5, 0.75]])
    (out,) = session.run(None, {session.get_inputs()[0].name: z.numpy()})
    assert out.tolist() == [[0.0, 0.0, 0.75]]


def test_a_net_that_does_not_trace(tmp_path) -> None:
    class Modal(nn.Module):
        shape = (1, 12, 12)

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(144, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.fc(x.flatten(1)))
            return 2.0 * x if self.training else x

    hard = retrofit(Modal(), JumpReLU(0.2))
    assert export(hard, tmp_path / "modal.onnx", images=IMAGES).agreement == 1.0


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        (".pt2", torch.float16),
        (".pt2", torch.bfloat16),
        (".pt2", torch.float64),
        (".onnx", torch.float16),
    ],
    ids=str,
)
def test_a_net_of_another_dtype_takes_the_images_that_all_nets_take(
    tmp_path, suffix: str, dtype
) -> None:
    made = retrofit(net(), JUMP_AND_SLOPE).to(dtype)
    done = export(made, tmp_path / f"net{suffix}", images=IMAGES[:30])
    assert done.n == 30 and done.agreement > 0.9 and done.max_difference < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_dtype_that_the_runtime_lacks_is_said_with_the_cure(tmp_path, dtype) -> None:
    with pytest.raises(ValueError, match=r"export net\.float\(\)"):
        export(net(nn.GELU).to(dtype), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_another_suffix(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.pt2 or \.onnx"):
        export(net(), tmp_path / "net.pkl")


def test_without_onnx_the_cure_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'onnxscript: pip install "retroact\[onnx\]"'):
        export(net(), tmp_path / "net.onnx")


def test_nothing_is_left_of_a_failed_export(tmp_path) -> None:
    class Failing(nn.Module):
        shape = (3,)

        def forward(self, x: Tensor) -> Tensor:
            return x[torch.randint(0, int(x.sum()) + 1, (1,)).item() :]

    with pytest.raises(Exception, match=r".+"):
        export(Failing(), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []
