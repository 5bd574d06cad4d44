"""Networks that the zoo does not hold, for `bench/attacks.py`: timm's, with random weights and
batch norms as of a training, on smooth patterns with the network's own decisions as labels, so that
every image is to be attacked. Needs timm (not its torchvision)."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch

import retroact as ra

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "corpus"))
from architectures import Architecture, centred, drawn, timm, worn

_VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 4, "num_heads": 4}
_BUILDS = {
    "vit-32": (partial(timm.models.VisionTransformer, **_VIT), 32),
    "mobilenetv3-224": (partial(timm.create_model, "mobilenetv3_small_100"), 224),
}


def made(name: str, n: int) -> tuple[ra.Classifier, ra.Images]:
    """The network of that name, and n images that it knows."""
    build, size = _BUILDS[name]
    shape = (3, size, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Architecture("timm", partial(build, num_classes=10), shape).fresh()
        seen = drawn(shape, 64)
        net = ra.Classifier(worn(module, seen), shape=shape)
        centred(net, seen)
        images = drawn(shape, n)
    with torch.no_grad():
        labels = net(images).argmax(1)
    return net, ra.Images.of(images, labels, name="smooth patterns")
