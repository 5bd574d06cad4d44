"""The corpus: networks of other people's making, with random weights, that every part of the house
must bear.

    made = ARCHITECTURES["Swin"].made()
    made.net       a Classifier whose batch norms are worn and whose decisions differ
    made.images    images with the network's own decisions as labels, of three classes or more

Nothing is downloaded: networks of `transformers` and `timm` are built from tiny configurations.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import by_hand
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision_stub import torchvision_stub

import retroact as ra
from retroact.nets.classifier import Shape
from retroact.nets.digits_cnn import DigitsCNN
from retroact.nets.lenet_like import LeNetLike
from retroact.nets.mnist_cnn import MnistCNN
from retroact.nets.resnet20 import ResNet20
from retroact.nets.wide_resnet import WideResNet

with torchvision_stub():
    import timm

IMAGES = 8


@dataclass(frozen=True)
class Made:
    """A network ready for the law, and its images."""

    net: ra.Classifier
    data: ra.Images


@dataclass(frozen=True)
class Architecture:
    """How a network is built: `build` gives the plain module, `also` the kinds beside ReLU to be
    replaced."""

    family: str
    build: Callable[[], nn.Module]
    shape: Shape
    output: str | int | None = None
    also: tuple[str, ...] = ()

    def fresh(self) -> nn.Module:
        """The module, its weights drawn from one seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build()

    def made(self) -> Made:
        """The network, worn and centred, and images that it knows."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            images = drawn(self.shape, 64)
            net = ra.Classifier(worn(self.fresh(), images), shape=self.shape, output=self.output)
            centred(net, images)
        labels = net(images[:IMAGES].clone()).argmax(1)
        return Made(net, ra.Images.of(images[:IMAGES], labels))


# ------------------------------------------------------------------------------- weights and images


def drawn(shape: Shape, n: int) -> Tensor:
    """Smooth patterns of many contrasts, (n, c, h, w) in [0, 1]: noise alone looks the same to any
    network."""
    c, h, w = shape
    coarse = F.interpolate(torch.rand(n, c, 3, 3), (h, w), mode="bilinear")
    contrast, fine = torch.rand(n, 1, 1, 1), torch.rand(n, c, h, w)
    return (0.5 + contrast * (coarse - 0.5) * 2 + 0.2 * (fine - 0.5)).clamp(0.02, 0.98)


def worn(module: nn.Module, images: Tensor) -> nn.Module:
    """Gives batch norms statistics and weights as of a training, each unlike the next, so that a
    wrong fold shows."""
    norms = [m for m in module.modules() if getattr(m, "running_mean", None) is not None]
    hooks = [norm.register_forward_pre_hook(_wear) for norm in norms]
    # with gradients, as in a notebook: what a network keeps of a pass must not stand in the way of
    # a copy
    module.eval()(images.clone())
    for hook in hooks:
        hook.remove()
    return module


@torch.no_grad()
def _wear(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    others = [d for d in range(inputs[0].dim()) if d != 1]
    spread = inputs[0].std(others)
    spread += 0.1 * spread.mean()
    norm.running_mean.copy_(inputs[0].mean(others) + 0.3 * spread * torch.randn_like(spread))
    norm.running_var.copy_(spread.square() * torch.empty_like(spread).uniform_(0.5, 2))
    if norm.weight is not None:
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.3)


@torch.no_grad()
def centred(net: ra.Classifier, images: Tensor) -> None:
    """Shifts and scales the last layer so that over the images each logit has mean 0 and they have
    spread 1."""
    head = _head(net, images)
    if not head.weight.any():  # as some are born
        nn.init.normal_(head.weight)
    before = net(images.clone())
    scale = 1 / (before - before.mean(0)).std()
    for name in ("weight", "weight_g"):
        if name in head._parameters:
            head._parameters[name] *= scale
    if (
        "original0"
        in getattr(getattr(head, "parametrizations", {}), "weight", nn.Module())._parameters
    ):
        head.parametrizations.weight.original0 *= scale
    head.bias -= net(images.clone()).mean(0)


def _head(net: ra.Classifier, images: Tensor) -> nn.Module:
    """The last linear layer or convolution that gives as many numbers as there are classes."""
    seen: list[nn.Module] = []
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    hooks = [m.register_forward_hook(lambda m, _, out: seen.append(m)) for m in layers]
    classes = net(images[:2].clone()).shape[1]
    for hook in hooks:
        hook.remove()
    return [m for m in seen if m.bias is not None and len(m.bias) == classes][-1]


# ------------------------------------------------------------------------------------- the families


def _ours(build: Callable[[], nn.Module], shape: Shape) -> Architecture:
    return Architecture("ours", build, shape)


def _by_hand(
    build: Callable[[], nn.Module], *, output: str | None = None, also: tuple[str, ...] = ()
) -> Architecture:
    return Architecture("by hand", build, (3, 16, 16), output, also)


def _hf(name: str, *, also: tuple[str, ...] = (), size: int = 32, **config: Any) -> Architecture:
    return Architecture(
        "transformers", partial(_configured, name, config), (3, size, size), "logits", also
    )


def _configured(name: str, config: dict[str, Any]) -> nn.Module:
    transformers = importlib.import_module("transformers")
    said = getattr(transformers, f"{name}Config")(num_labels=10, **config)
    return getattr(transformers, f"{name}ForImageClassification")(said)


def _timm(name: str, *, also: tuple[str, ...] = (), size: int = 32, **how: Any) -> Architecture:
    return Architecture(
        "timm", partial(timm.create_model, name, num_classes=10, **how), (3, size, size), None, also
    )


def _timm_class(
    build: Callable[..., nn.Module], *, also: tuple[str, ...] = (), **how: Any
) -> Architecture:
    return Architecture("timm", partial(build, num_classes=10, **how), (3, 32, 32), None, also)


def _mobilenet_v3(num_classes: int) -> nn.Module:
    said = [["ds_r1_k3_s1_e1_c8_se0.25_nre"], ["ir_r1_k5_s2_e3_c12_se0.25"], ["cn_r1_k1_s1_c24"]]
    blocks = timm.models._efficientnet_builder.decode_arch_def(said)
    how = {"act_layer": nn.Hardswish, "se_layer": timm.models._efficientnet_blocks.SqueezeExcite}
    return timm.models.MobileNetV3(blocks, num_classes, stem_size=8, num_features=32, **how)


_TRANSFORMER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}
_DINO = {k: v for k, v in _TRANSFORMER.items() if k != "intermediate_size"}
_SWIN = {
    "embed_dim": 12,
    "depths": [2, 1],
    "num_heads": [2, 2],
    "window_size": 4,
    "initializer_range": 0.2,
}
_CONVNEXT = {"hidden_sizes": [12, 16], "depths": [1, 1], "num_stages": 2, "initializer_range": 0.2}
_EFFICIENTNET = {
    "width_coefficient": 0.25,
    "depth_coefficient": 1.0,
    "hidden_dim": 320,
    "image_size": 32,
    "in_channels": [32, 16, 24],
    "out_channels": [16, 24, 40],
    "kernel_sizes": [3, 3, 5],
    "strides": [1, 2, 2],
    "num_block_repeats": [1, 1, 1],
    "expand_ratios": [1, 6, 6],
    "initializer_range": 0.2,
}
_POOLFORMER = {
    "hidden_sizes": [12, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "patch_sizes": [3, 3, 3, 3],
    "strides": [2, 2, 2, 2],
    "padding": [1, 1, 1, 1],
    "mlp_ratio": 2.0,
    "initializer_range": 0.2,
}
_LEVIT = {
    "hidden_sizes": [16, 24, 32],
    "num_attention_heads": [2, 2, 2],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
}
_MOBILEVIT = {
    "hidden_sizes": [16, 20, 24],
    "neck_hidden_sizes": [8, 8, 12, 12, 16, 16, 32],
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}
_PVT2 = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "mlp_ratios": [2, 2, 2, 2],
    "strides": [2, 2, 2, 2],
    "patch_sizes": [3, 3, 3, 3],
    "initializer_range": 0.2,
}
_CVT = {
    "embed_dim": [8, 16],
    "num_heads": [1, 2],
    "depth": [1, 2],
    "cls_token": [False, True],
    "initializer_range": 0.2,
}
_HGNET = {
    "embedding_size": 8,
    "hidden_sizes": [16, 16, 24, 24],
    "depths": [1, 1, 1, 1],
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 16, 16, 24],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [16, 16, 24, 24],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
}
_SWIFT = {"depths": [1, 1, 1, 1], "embed_dims": [8, 12, 16, 16], "layer_scale_init_value": 0.5}
_GHOST = [[[3, 16, 16, 0, 1]], [[3, 24, 16, 0.25, 2]]]
_NARROW = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)}
_MIXER = {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 24}
_TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24}
_TIMM_LEVIT = {
    "img_size": 32,
    "embed_dim": (16, 24),
    "key_dim": 8,
    "depth": (1, 1),
    "num_heads": (2, 2),
    "stem_type": "s8",
}


ARCHITECTURES: dict[str, Architecture] = {
    "DigitsCNN": _ours(DigitsCNN(), (1, 8, 8)),
    "MnistCNN": _ours(MnistCNN(), (1, 28, 28)),
    "LeNetLike": _ours(LeNetLike(), (1, 28, 28)),
    "ResNet20": _ours(ResNet20(), (3, 32, 32)),
    "WideResNet(10, 1)": _ours(WideResNet(depth=10, widen=1), (3, 32, 32)),
    "ViT": _hf("ViT", also=("gelu",), image_size=32, patch_size=8, **_TRANSFORMER),
    "DeiT": _hf("DeiT", also=("gelu",), image_size=32, patch_size=8, **_TRANSFORMER),
    "BEiT": _hf(
        "Beit",
        also=("gelu",),
        image_size=32,
        patch_size=8,
        use_relative_position_bias=True,
        **_TRANSFORMER,
    ),
    "DINOv2": _hf("Dinov2", also=("gelu",), image_size=32, patch_size=8, mlp_ratio=2, **_DINO),
    "Swin": _hf("Swin", also=("gelu",), image_size=32, patch_size=4, **_SWIN),
    "Swin V2": _hf("Swinv2", also=("gelu",), image_size=32, patch_size=4, **_SWIN),
    "ConvNeXt": _hf("ConvNext", also=("gelu",), layer_scale_init_value=0.5, **_CONVNEXT),
    "ConvNeXt V2": _hf("ConvNextV2", also=("gelu",), **_CONVNEXT),
    "ResNet": _hf("ResNet", embedding_size=8, hidden_sizes=[16, 24], depths=[1, 2]),
    "RegNet": _hf(
        "RegNet",
        embedding_size=8,
        hidden_sizes=[16, 24],
        depths=[1, 1],
        groups_width=8,
        layer_type="y",
    ),
    "BiT": _hf("Bit", embedding_size=8, hidden_sizes=[16, 24], depths=[1, 1], num_groups=4),
    "MobileNet V1": _hf("MobileNetV1", depth_multiplier=0.25),
    "MobileNet V2": _hf("MobileNetV2", depth_multiplier=0.25, finegrained_output=False),
    "EfficientNet": _hf("EfficientNet", also=("silu",), **_EFFICIENTNET),
    "PoolFormer": _hf("PoolFormer", also=("gelu",), layer_scale_init_value=0.5, **_POOLFORMER),
    "LeViT": _hf("Levit", also=("hardswish",), image_size=32, **_LEVIT),
    "MobileViT": _hf("MobileViT", also=("silu",), image_size=32, **_MOBILEVIT),
    "PVT V2": _hf("PvtV2", also=("gelu",), image_size=32, **_PVT2),
    "CvT": _hf("Cvt", also=("gelu",), **_CVT),
    "HGNet V2": _hf("HGNetV2", **_HGNET),
    "SwiftFormer": _hf("SwiftFormer", also=("gelu",), image_size=32, **_SWIFT),
    "timm ResNet": _timm("resnet18", **_NARROW),
    "timm SE-ResNet": _timm("seresnet50", **_NARROW),
    "timm Res2Net": _timm("res2net50_26w_4s", **_NARROW),
    "timm ResNet V2": _timm("resnetv2_50", channels=(16, 16), layers=(1, 1), stem_chs=8),
    "timm DenseNet": _timm_class(timm.models.DenseNet, growth_rate=4, block_config=(2, 2)),
    "timm VGG": _timm_class(
        timm.models.VGG, cfg=[8, "M", 8, "M", 16, "M"], mlp_ratio=0.01, norm_layer=nn.BatchNorm2d
    ),
    "timm MLP-Mixer": _timm_class(timm.models.MlpMixer, also=("gelu",), **_MIXER),
    "timm ViT": _timm("vit_tiny_patch16_224", also=("gelu",), depth=2, num_heads=2, **_TIMM_VIT),
    "timm ConvNeXt": _timm(
        "convnext_atto", also=("gelu",), depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), ls_init_value=0.5
    ),
    "timm MobileNet V3": _timm_class(_mobilenet_v3, also=("hardswish",)),
    "timm EfficientNet": _timm("test_efficientnet", also=("silu",)),
    "timm GhostNet": _timm_class(timm.models.GhostNet, cfgs=_GHOST),
    "timm RegNet-like": _timm("test_byobnet"),
    "timm NFNet": _timm("test_nfnet", also=("silu",)),
    "timm MambaOut": _timm("test_mambaout", also=("gelu", "silu")),
    "timm LeViT": _timm_class(timm.models.Levit, also=("hardswish",), **_TIMM_LEVIT),
    "Viewed": _by_hand(by_hand.Viewed),
    "Reshaped": _by_hand(by_hand.Reshaped),
    "Skipped": _by_hand(by_hand.Skipped),
    "Shared": _by_hand(by_hand.Shared),
    "SharedNorm": _by_hand(by_hand.SharedNorm),
    "SharedConv": _by_hand(by_hand.SharedConv),
    "Lambdas": _by_hand(by_hand.Lambdas),
    "Dense": _by_hand(by_hand.Dense),
    "SqueezeExcite": _by_hand(by_hand.SqueezeExcite),
    "Attention": _by_hand(by_hand.Attention),
    "Encoder": _by_hand(by_hand.Encoder),
    "GroupNormed": _by_hand(by_hand.GroupNormed),
    "InstanceNormed": _by_hand(by_hand.InstanceNormed),
    "LayerNormed": _by_hand(by_hand.LayerNormed),
    "OldWeightNorm": _by_hand(by_hand.OldWeightNorm),
    "NewWeightNorm": _by_hand(by_hand.NewWeightNorm),
    "OldSpectralNorm": _by_hand(by_hand.OldSpectralNorm),
    "NewSpectralNorm": _by_hand(by_hand.NewSpectralNorm),
    "TiedDecoder": _by_hand(by_hand.TiedDecoder),
    "TwoHeads": _by_hand(by_hand.TwoHeads, output="logits"),
    "TokenNorm(16, 16)": _by_hand(partial(by_hand.TokenNorm, 16, 16)),
    "TokenNorm(16, 24)": _by_hand(partial(by_hand.TokenNorm, 16, 24)),
    "Conv1dInside": _by_hand(by_hand.Conv1dInside),
    "Conv3dInside": _by_hand(by_hand.Conv3dInside),
    "InPlace": _by_hand(by_hand.InPlace),
    "NormalisesItsInput": _by_hand(by_hand.NormalisesItsInput),
    "Recurrent": _by_hand(by_hand.Recurrent),
    "Gated": _by_hand(by_hand.Gated),
    "Dropouts": _by_hand(by_hand.Dropouts),
    "Perceptron": _by_hand(by_hand.Perceptron),
    "PreActivated": _by_hand(by_hand.PreActivated),
    "Depthwise": _by_hand(by_hand.Depthwise),
    "Transposed": _by_hand(by_hand.Transposed),
    "Gates": _by_hand(by_hand.Gates),
    "Branches": _by_hand(by_hand.Branches),
    "Counts": _by_hand(by_hand.Counts),
    "HandWritten": _by_hand(by_hand.HandWritten),
    "Chunked": _by_hand(by_hand.Chunked),
}
"""Every architecture of the corpus by its name; the names of families are those of their papers."""
