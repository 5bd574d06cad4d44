"""Changes of a whole network: what becomes of its numbers, on disk and back, beside the runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retroact as ra
from retroact.changing.int8 import Grid, Int8Layer
from retroact.checkpoint import digest
from retroact.spec import SpecError


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return ra.load("digits-cnn")


@pytest.fixture(scope="module")
def train() -> ra.Images:
    return ra.data("digits/train[:300]")


@pytest.fixture(scope="module")
def test() -> ra.Images:
    return ra.data("digits[:200]")


def weights(net: nn.Module) -> Tensor:
    kinds = (nn.Conv2d, nn.Linear)
    return torch.cat([m.weight.detach().flatten() for m in net.modules() if isinstance(m, kinds)])


class TestPruned:
    @pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.0])
    def test_the_smallest_are_gone_and_the_others_stay(self, net, share: float) -> None:
        before, after = weights(net), weights(ra.change(net, ra.Pruned(share)))
        assert int((after == 0).sum()) == round(share * len(before))
        assert torch.equal(after[after != 0], before[after != 0])
        if 0 < share < 1:
            assert before[after == 0].abs().max() <= before[after != 0].abs().min()

    def test_by_layer_each_layer_loses_its_share(self, net) -> None:
        made = ra.change(net, "Pruned(0.5, across='layer')")
        for m in made.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                assert int((m.weight == 0).sum()) == round(0.5 * m.weight.numel())
        assert not (weights(net) == 0).any(), "the net stays as it is"


class TestHalf:
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_it_computes_in_it(self, net, test, tmp_path, dtype) -> None:
        made = ra.change(net, ra.Half(dtype))
        assert {p.dtype for p in made.parameters()} == {getattr(torch, dtype)}
        again = ra.load(ra.save(made, tmp_path / "half.safetensors"))
        x = test.images.to(getattr(torch, dtype))
        with torch.no_grad():
            assert torch.equal(again(x), made(x)) and again(x).dtype is getattr(torch, dtype)


class TestInt8:
    def test_a_grid_by_hand(self) -> None:
        grid = Grid(-1.0, 254 / 255 * 1.0 + 1 / 255 * 1.0)  # steps of 2/255, zero at 128
        z = torch.tensor([0.0, 0.0001, 2 / 255, 9.0, -9.0])
        step, zero = float(grid.step), float(grid.zero)
        assert grid(z).tolist() == pytest.approx(
            [0.0, 0.0, step, (255 - zero) * step, -zero * step]
        )
        x = torch.linspace(-3, 3, 4001)
        assert len(grid(x).unique()) == 256
        inside = (x > -1) & (x < 1)
        assert (grid(x) - x)[inside].abs().max() <= step / 2 + 1e-6

    def test_its_gradient_is_straight_through(self) -> None:
        x = torch.tensor([-9.0, 0.3, 9.0], requires_grad=True)
        (g,) = torch.autograd.grad(Grid(-1.0, 1.0)(x).sum(), x)
        assert g.tolist() == [0.0, 1.0, 0.0]

    def test_weights_have_a_scale_for_each_channel(self, net, train) -> None:
        made = ra.change(net, ra.Int8(), train)
        layers = [m for m in made.modules() if isinstance(m, Int8Layer)]
        own = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) == len(own)
        for layer, before in zip(layers, own, strict=True):
            for w, v in zip(layer.layer.weight, before.weight, strict=True):
                step = v.abs().max() / 127
                levels = w / step
                assert torch.allclose(levels, levels.round(), atol=1e-3)
                assert (w - v).abs().max() <= step / 2 * 1.001

    def test_it_is_the_network_but_for_rounding_and_travels(self, net, train, test, tmp_path):
        made = ra.change(net, ra.Int8(), train)
        with torch.no_grad():
            near, exact = made(test.images), net(test.images)
        assert (near - exact).abs().mean() < 0.05 * exact.std() and not torch.equal(near, exact)
        assert len(near.unique()) <= 256
        again = ra.load(ra.save(made, tmp_path / "int8.safetensors"))
        with torch.no_grad():
            assert torch.equal(again(test.images), near) and again.change == "Int8()"

    def test_it_needs_training_data(self, net, test) -> None:
        with pytest.raises(ValueError, match="Int8.. needs training data"):
            ra.change(net, ra.Int8())
        with pytest.raises(ValueError, match="is test data, on which nothing is measured"):
            ra.change(net, ra.Int8(), test)

    def test_beside_the_reference_runtime(self, net, train, test, tmp_path) -> None:
        """Within a point of what onnxruntime's quantize_static makes of the same network."""
        import onnx
        from onnxruntime import quantization

        float_file, int_file = tmp_path / "float.onnx", tmp_path / "int8.onnx"
        ra.export(net, float_file, images=test.images[:2])

        class Reader(quantization.CalibrationDataReader):
            def __init__(self) -> None:
                name = onnx.load(float_file).graph.input[0].name
                self.rest = iter([{name: train.images.numpy().astype(np.float32)}])

            def get_next(self):
                return next(self.rest, None)

        how = {"per_channel": True, "weight_type": quantization.QuantType.QInt8}
        quantization.quantize_static(str(float_file), str(int_file), Reader(), **how)
        runtime, made = ra.load(int_file), ra.change(net, ra.Int8(), train)
        with torch.no_grad():
            decided = [n(test.images).argmax(1) for n in (runtime, made)]
        shares = [float((d == test.labels).float().mean()) for d in decided]
        assert abs(shares[0] - shares[1]) <= 0.01
        assert float((decided[0] == decided[1]).float().mean()) >= 0.98

    def test_products_that_are_no_module_are_said(self, train) -> None:
        class Mixed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.w = nn.Linear(64, 20), nn.Parameter(torch.randn(10, 20))

            def forward(self, x: Tensor) -> Tensor:
                return F.linear(F.relu(self.a(x.flatten(1))), self.w)

        made = ra.change(ra.Classifier(Mixed(), shape=(1, 8, 8)), ra.Int8(), train)
        assert "1 products of each pass are no module" in made.notes[0]


class TestDistilled:
    def test_a_student_that_would_keep_weights_is_none(self, train) -> None:
        kept = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        kept.register_parameter("scale", nn.Parameter(torch.ones(1)))
        with pytest.raises(ValueError, match="module .Sequential. would keep what was trained"):
            ra.change(ra.Classifier(kept, shape=(1, 8, 8)), ra.Distilled(epochs=1), train)

    @pytest.mark.parametrize("temperature", [1.0, 20.0])
    def test_a_student_learns_the_answers(self, net, train, test, temperature: float) -> None:
        how = ra.Distilled(temperature, epochs=8, batch=32)
        student = ra.change(net, how, ra.data("digits/train"))
        with torch.no_grad():
            same = (student(test.images).argmax(1) == net(test.images).argmax(1)).float().mean()
        assert same > 0.85 and not torch.equal(weights(student), weights(net))
        one, other, again = (
            ra.change(net, ra.Distilled(epochs=1, seed=s), train) for s in (0, 1, 0)
        )
        assert torch.equal(weights(one), weights(again))
        assert not torch.equal(weights(one), weights(other))


def test_a_changed_net_is_not_changed_again(net) -> None:
    made = ra.change(net, ra.Pruned(0.5))
    with pytest.raises(ValueError, match=r"changed already, by Pruned\(share=0.5\)"):
        ra.change(made, ra.Half())
    with pytest.raises(SpecError, match="Pruned.share: expected"):
        ra.Pruned(1.5)


def test_an_audit_takes_a_change(net) -> None:
    made = ra.audit(net, "Pruned(0.0)", "digits[:40]", ra.Linf(0.1), battery="quick")
    assert made.verdict.counts.verified_gain == 0


def test_a_file_that_names_an_unknown_change_is_refused(net, tmp_path) -> None:
    made = ra.change(net, ra.Pruned(0.5))
    made.change = "Unheard(3)"
    with pytest.raises(ValueError, match=r"was changed by Unheard\(3\)"):
        ra.load(ra.save(made, tmp_path / "net.safetensors"))


class TestOnnx:
    def test_it_gives_the_networks_scores_in_any_batch(self, net, test, tmp_path) -> None:
        ra.export(net, tmp_path / "net.onnx", images=test.images[:2])
        read = ra.load(tmp_path / "net.onnx")
        with torch.no_grad():
            assert torch.allclose(read(test.images[:7]), net(test.images[:7]), atol=1e-4)
        record = ra.evaluate(read, test, ra.PGD(steps=5), ra.Linf(0.1), source=net)
        own = ra.evaluate(net, test, ra.PGD(steps=5), ra.Linf(0.1))
        assert abs(ra.robust_accuracy(record) - ra.robust_accuracy(own)) < 0.03

    def test_what_is_no_file_says_so(self, tmp_path) -> None:
        with pytest.raises(ValueError, match=r"is a whole network; drop weights= and into="):
            ra.load(tmp_path / "net.onnx", weights="w.safetensors")
        (tmp_path / "bad.onnx").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="no ONNX file that onnxruntime reads"):
            ra.load(tmp_path / "bad.onnx")
        with pytest.raises(FileNotFoundError, match=r"no file .*gone\.onnx"):
            ra.load(tmp_path / "gone.onnx")


def test_the_transfer_matrix(net, train, test) -> None:
    nets = {"float": net, "int8": ra.change(net, ra.Int8(), train)}
    made = ra.transfer_matrix(nets, test, ra.PGD(steps=10), ra.Linf(0.1))
    own = ra.evaluate(net, test, ra.PGD(steps=10), ra.Linf(0.1))
    assert made.robust[0][0] == pytest.approx(ra.robust_accuracy(own))
    assert made.robust[0][0] <= made.robust[0][1] <= made.clean[1] and made.n == 200
    assert "| crafted on | judged on float % | judged on int8 % |" in str(made)


def test_a_change_of_somebody_elses_is_no_word_of_ours(train) -> None:
    """A stranger's module may have an attribute of that name."""

    class Front(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.change = nn.Linear(64, 10), torch.round

        def forward(self, x: Tensor) -> Tensor:
            return self.net(self.change(x.flatten(1)))

    made = ra.change(Front(), ra.Pruned(0.5))
    assert made.change is torch.round and int((made.net.weight == 0).sum()) == 320
    assert digest(made) != digest(Front())
