"""The gradient of one image is what it is among others, also where torch's own batch norm errs."""

import pytest
import torch
from torch import Tensor, nn

import retroact as ra
from retroact.crafting.oracle import Oracle


class Stem(nn.Module):
    """A stem of convolutions before something that reads positions, as transformers have it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = (
            nn.Conv2d(1, 16, 3, stride=2),
            nn.BatchNorm2d(16),
            nn.Linear(16 * 16, 4),
        )
        self.gate = nn.Parameter(torch.randn(16, 16))
        self.norm.running_var.uniform_(0.2, 3)
        self.norm.weight.data.uniform_(0.5, 2)
        self.to(dtype).eval()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        return self.fc((tokens * self.gate).flatten(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_gradient_of_one_image_is_what_it_is_in_company(dtype, wrapped):
    net = Stem(dtype)
    network = (lambda x: net(x)) if wrapped else net
    x = torch.rand(3, 1, 9, 9, dtype=dtype)
    rows = torch.arange(3)
    together = Oracle(network, 3).gradient(x, rows, lambda z: z[:, 0])[1]
    for i in range(3):
        logits, alone = Oracle(network, 1).gradient(x[i : i + 1], rows[:1], lambda z: z[:, 0])
        assert logits.shape == (1, 4) and alone.shape == (1, 1, 9, 9)
        torch.testing.assert_close(alone[0], together[i])


def test_attacks_find_the_same_for_one_image_and_for_many():
    net = Stem(torch.float64)
    x = torch.rand(8, 1, 9, 9)
    data = ra.Images.of(x, net(x.double()).argmax(1))
    many = ra.evaluate(net, data, ra.DeepFool(), ra.L2(3.0))
    for i in range(8):
        one = ra.evaluate(net, data[i : i + 1], ra.DeepFool(), ra.L2(3.0))
        assert one.distance[0, 2] == pytest.approx(many.distance[i, 2], rel=1e-3)
