"""Each architecture against the counts of the papers' own checkpoints and code."""

import pytest
import torch
from torch import nn

from retroact.nets.alex_like import AlexLike
from retroact.nets.cifar10_cnn import Cifar10CNN1
from retroact.nets.digits_cnn import DigitsCNN
from retroact.nets.lenet_like import LeNetLike
from retroact.nets.mnist_cnn import MnistCNN
from retroact.nets.mobilenet_v2 import MobileNetV2
from retroact.nets.preact_resnet import PreActResNet18
from retroact.nets.resnet20 import ResNet20
from retroact.nets.wide_resnet import WideResNet
from retroact.nets.zoo import NETWORKS, Architecture, Network
from retroact.spec import SpecError, parse, show

# architecture, image shape, parameters, activation sites
FACTS = [
    (DigitsCNN(), (1, 8, 8), 38_282, 3),
    (MnistCNN(), (1, 28, 28), 21_840, 3),
    (Cifar10CNN1(), (3, 32, 32), 62_006, 4),
    (LeNetLike(), (1, 28, 28), 55_600, 4),
    (AlexLike(), (3, 32, 32), 1_147_978, 6),
    (ResNet20(), (3, 32, 32), 272_474, 19),
    (WideResNet(), (3, 32, 32), 7_404_074, 31),
    (WideResNet(depth=28), (3, 32, 32), 5_853_098, 25),
    (MobileNetV2(), (3, 32, 32), 2_296_922, 36),
    (PreActResNet18(), (3, 32, 32), 2_796_714, 17),
    (PreActResNet18(width=64), (3, 32, 32), 11_172_170, 17),
]


@pytest.mark.parametrize(
    ("architecture", "shape", "parameters", "sites"), FACTS, ids=lambda v: str(v)
)
def test_architecture(
    architecture: Architecture, shape: tuple[int, int, int], parameters: int, sites: int
) -> None:
    net = architecture().eval()
    calls: list[nn.Module] = []
    relus = [m for m in net.modules() if isinstance(m, nn.ReLU)]
    for relu in relus:
        relu.register_forward_hook(lambda module, *_: calls.append(module))
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert net(torch.rand(2, *shape)).shape == (2, 10)
    # every site is a module of its own, and is called once
    assert len(calls) == len(set(map(id, calls))) == len(relus) == sites
    assert parse(show(architecture)) == architecture


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        (MnistCNN(), ["conv1", "conv2", "fc1", "fc2"]),
        (Cifar10CNN1(), ["conv1", "conv2", "fc1", "fc2", "fc3"]),
        (LeNetLike(), ["conv1", "conv2", "fc1", "fc2", "fc3"]),
    ],
)
def test_parameters_are_named_as_in_the_authors_files(
    architecture: Architecture, names: list[str]
) -> None:
    expected = [f"{n}.{p}" for n in names for p in ("weight", "bias")]
    assert list(architecture().state_dict()) == expected


def test_dropout_is_off_in_eval_mode_and_on_in_train_mode() -> None:
    x = torch.rand(4, 1, 28, 28)
    for net in (MnistCNN()(), LeNetLike()()):
        assert not torch.equal(net.train()(x), net(x))
        assert torch.equal(net.eval()(x), net(x))


def test_pooling_before_the_activation_equals_pooling_after_it() -> None:
    net = LeNetLike()().eval()
    z = net.conv1(torch.randn(5, 1, 28, 28))
    assert torch.equal(net.conv1_relu(net.pool1(z)), net.pool1(net.conv1_relu(z)))


def test_the_stride_of_a_wide_block_sits_on_its_second_conv() -> None:
    block = WideResNet(depth=10)().group2.block1
    assert block.conv1(torch.rand(1, 64, 32, 32)).shape[2:] == (32, 32)
    assert block(torch.rand(1, 64, 32, 32)).shape == (1, 128, 16, 16)


def test_a_depth_that_is_no_wide_resnet_is_refused() -> None:
    with pytest.raises(ValueError, match=r"6 N \+ 4"):
        WideResNet(depth=30)
    with pytest.raises(SpecError, match="at least 10"):
        WideResNet(depth=4)


def test_a_pre_activated_block_adds_to_what_it_was_given() -> None:
    still, changing = PreActResNet18(width=4)().stage2.eval()
    for block in (still, changing):
        nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 8, 8)
    activated = still.relu1(still.bn1(x))
    torch.testing.assert_close(still(x), still.shortcut(activated))
    assert still(x).shape == (2, 8, 4, 4)
    assert torch.equal(changing(still(x)), still(x))


def test_resnet20_starts_from_the_variance_of_its_fan_out() -> None:
    weight = ResNet20()().stage3.block2.conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_networks_print_as_they_are_read_and_fit_their_images(network: Network) -> None:
    assert parse(show(network)) == network
    net = network()
    assert net.shape == network.shape
    assert net(torch.rand(2, *network.shape)).shape == (2, network.classes)
