"""How many images each item of the study asks, one line for each item: the full study's number
first, a quick one's last, and between them what a page may still stand on (`Desk.largest`).

What costs nothing is asked of all 10,000 test images; what an image costs on a network decides the
rest: MobileNetV2 takes 3 times as long as ResNet-20, WideResNet 12 times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retroact.studies.jumprelu.networks import Net


@dataclass(frozen=True)
class Sizes:
    """Of the networks of MNIST, AlexLike and ResNet-20, MobileNetV2, WideResNet: largest first."""

    mnist: tuple[Any, ...]
    cifar: tuple[Any, ...]
    mobile: tuple[Any, ...]
    wide: tuple[Any, ...]

    def of(self, net: Net) -> tuple[Any, ...]:
        """Those of one network."""
        if net.data == "mnist":
            return self.mnist
        large = {"wideresnet_cifar10": self.wide, "mobilenetv2_cifar10": self.mobile}
        return large.get(net.key, self.cifar)


ALL = 10_000
TABLES = Sizes((ALL, 300), (1000, 100), (1000, 400, 48), (200, 16))
"""Tables 1 and 2, and what stands on the same sets."""
SWITCHES = (2000, 300)
"""Each switch of the protocol, on the base LeNet-like."""
CLEAN = Sizes((ALL, 1000), (ALL, 1000), (ALL, 1000), (ALL, 1000))
"""Clean accuracies, and the clean curves of Figures 4 and 8."""
CURVES = Sizes((2000, 300), (250, 100), (100, 48), (50, 16))
"""The noise of Figures 4 and 8 at each kappa."""
MATRIX = Sizes((1000, 100), (200, 50), (200, 24), (200, 8))
"""Figure 7."""
ITERATIONS = Sizes((2000, 150), (200, 50), (200, 80, 24), (200, 40, 8))
"""Figure 9."""
NORMS = Sizes((100,), (100, 16), (100, 16), (32, 16))
"""Minimum norms, each by up to eight attacks."""
CARLINI_WAGNER = Sizes((1000, 100), (100, 33), (40, 16), (20, 8))
"""TR beside Carlini and Wagner."""
SINGLE_PIXELS = Sizes((200, 20), (50, 4), (), ())
"""Every single pixel of an image, at every corner of the colours: 1568 or 8192 looks."""
AUDITS = Sizes(
    (("whole", 300), ("quick", 200)),
    (("whole", 200), ("quick", 200)),
    (("whole", 200), ("quick", 200)),
    (("whole", 100), ("quick", 200)),
)
"""The truth's audits: battery and images. Those beside the tables are quick, of 200."""
BESIDE = 200
DETECTION = {"mnist": (4000, 200), "cifar10": (4000, 200)}
"""Table 3, by data: every image is tested, in folds: about two CPU hours."""
TUNED_BY_RULE = Sizes((2000, 200), (500, 100), (200, 48), (100, 16))
"""Validation images on which kappa is chosen by the paper's rule."""
TUNED_BY_AUDIT = Sizes((200, 100), (200, 50), (100, 24), (50, 8))
"""Those on which it is chosen by the quick audit's verified accuracy."""
