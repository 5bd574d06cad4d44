"""What JPEG costs a network that is trained on it: ResNet-20 on images as they are and re-encoded.

The copy of CIFAR-10 that the zoo was trained on has original pixels in the first 1017 images of
each of its batches, and JPEG of quality 75 in the others. Here one architecture sees those
originals alone, by one schedule, once as they are and once re-encoded; both are tested on originals
that neither saw. What lies between the two is the data; what then still lies between a network here
and the paper's is training.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retroact.evaluation.accuracy import clean_accuracy_of
from retroact.nets.data import Images, data
from retroact.nets.zoo import NETWORKS
from retroact.reports.studied import Part, Table, Text, Value
from retroact.spec import Count, Within, spec
from retroact.studies.desk import Desk, Facts
from retroact.training.fit import fit
from retroact.training.recipes import Standard

FIRST = 1017
"""So many images of each batch of 10,000 are original pixels; the fifth batch's are held out."""
HELD = (f"cifar10/validation[:{FIRST}]", f"cifar10[:{FIRST}]")
"""The originals that no network here was trained on."""
QUALITY = 75
SEEDS = (0, 1, 2)


@spec
class OnOriginals:
    """A ResNet-20 trained on the first `first` images of each of four batches of CIFAR-10, as JPEG
    of `quality` where it is above 0; its accuracy on the `HELD` originals, one after the other."""

    quality: Annotated[int, Within(0, 95)] = 0
    first: Count = FIRST
    epochs: Count = 80
    seed: int = 0

    def __call__(self) -> Facts:
        plan = Standard(self.epochs, 0.2, augment=True, bf16=True, channels_last=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = NETWORKS["resnet20-cifar10"]()
        fit(net, originals(self.first, self.quality), plan, seed=self.seed)
        return {"accuracy": [clean_accuracy_of(net, data(part)) for part in HELD]}


def originals(first: int, quality: int) -> Images:
    """The training images, re-encoded where `quality` is above 0."""
    parts = [data(f"cifar10/train[{at}:{at + first}]") for at in range(0, 40_000, 10_000)]
    images, labels, index = (
        torch.cat([getattr(part, what) for part in parts]) for what in ("images", "labels", "index")
    )
    if quality:
        images = torch.stack([_reencode(image, quality) for image in images])
    return replace(parts[0], images=images, labels=labels, index=index, name="originals")


def _reencode(image: Tensor, quality: int) -> Tensor:
    """(3, h, w) in [0,1] as JPEG gives it back."""
    pixels = image.mul(255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    again = np.asarray(Image.open(file), dtype=np.float32)
    return torch.from_numpy(again / 255).permute(2, 0, 1).contiguous()


def compare_pixels(desk: Desk) -> Iterator[Part]:
    """The two kinds of pixels beside each other, seed by seed."""
    size = (desk.pick(64, FIRST), desk.pick(2, 80))
    asked = {q: [OnOriginals(q, *size, seed=s) for s in SEEDS] for q in (0, QUALITY)}
    facts = iter(desk.all_facts([what for runs in asked.values() for what in runs]))
    shares = {
        q: [100 * np.mean(next(facts)["accuracy"]) for _ in runs] for q, runs in asked.items()
    }
    lost = np.subtract(shares[0], shares[QUALITY])
    kinds = {"as they are": shares[0], f"JPEG of quality {QUALITY}": shares[QUALITY], "lost": lost}
    rows: list[tuple[Value, ...]] = [
        (kind, *map(float, values), float(np.mean(values))) for kind, values in kinds.items()
    ]
    first, epochs = size
    yield Table(
        f"ResNet-20 trained for {epochs} epochs on {4 * first} images of CIFAR-10: accuracy (%) on"
        f" {len(HELD) * FIRST} originals that it never saw",
        ("its training images", *(f"seed {s}" for s in SEEDS), "mean"),
        tuple(rows),
    )
    yield Text(
        f"JPEG costs {np.mean(lost):.1f} points here (standard error over the seeds"
        f" {np.std(lost, ddof=1) / len(SEEDS) ** 0.5:.1f}), with the same images, schedule and"
        " number of steps: so much of what the zoo's networks for CIFAR-10 lack beside the paper's"
        " may be the copy that they were trained on; the rest is training."
    )
