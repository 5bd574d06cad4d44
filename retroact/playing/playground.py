"""The playground: a trained network in one page, to change, attack and look at, without a
connection."""

from __future__ import annotations

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor, nn

from retroact import __version__
from retroact.activations.piecewise import JumpReLU, SReLU
from retroact.attacks.pgd import CLAIMED
from retroact.doors import IMAGE
from retroact.files import write
from retroact.ground import neutral
from retroact.nets.classifier import sized
from retroact.nets.data import Images
from retroact.nets.zoo import Network
from retroact.playing.layers import layers_of
from retroact.playing.measured import Told, curves_of
from retroact.playing.packing import LIMIT, Packing
from retroact.reading import Data, Net, as_images, as_module
from retroact.retrofitting.copying import deep_copy
from retroact.spec import parse
from retroact.training.learnable import SHARPNESS

SHOWN = 20
"""How many images a page carries: the first of each class in turn."""


def playground(
    net: Net,
    path: str | PathLike[str],
    *,
    data: Data | None = None,
    hardened: Net | None = None,
    curves: Iterable[Told] = (),
    eps: float = 0.1,
    kappa: float = 1.0,
    alpha: float = 100.0,
    title: str | None = None,
) -> Path:
    """Writes a page that holds `net` and twenty images of `data`, runs it, and attacks it under
    activations that the reader chooses.

    `data` is by default the test split that the zoo's network was trained for. `hardened` is a
    second network beside it, such as what `harden` saved; `curves` are audits (or the files of
    `audit --json`) at several radii, of which claimed and verified accuracy are drawn. `eps`,
    `kappa` and `alpha` are where the page begins. Weights travel as half floats. Returns the path.
    Raises ValueError for images of another kind than (c, h, w) with 1 or 3 channels, layers that
    the page does not know, named one by one, and more than 2 MB of weights.
    """
    before = as_module(net)
    images = as_images(data_of(before) if data is None else data, before)
    shape = tuple(images.images.shape[1:])
    if len(shape) != IMAGE or shape[0] not in (1, 3):
        raise ValueError(f"a page draws images (1 or 3, h, w), got examples of shape {shape}")
    chosen = _choose(images)
    nets = {"plain": before} | ({} if hardened is None else {"hardened": as_module(hardened)})
    model = _model(nets, images, chosen)
    model |= {"eps": eps, "kappa": JumpReLU(kappa).kappa, "alpha": SReLU(alpha).alpha}
    model |= {"curves": curves_of(curves)}
    name = getattr(before, "name", "") or type(before).__name__
    text = _render(model, name=name, title=title or f"Playground: {name}", data=images.name)
    return write(text, Path(path))


def data_of(net: nn.Module) -> str:
    """The data that a zoo's network is for. Raises ValueError where the network does not say."""
    said = getattr(net, "network", "")
    if not said:
        raise ValueError(
            'the network does not say what its data are; give some, data="mnist[:1000]" (--data)'
        )
    return parse(said, Network).data


def _choose(images: Images) -> Tensor:
    """The rows of the images that a page shows: the first of each class, then the second, …"""
    labels = images.labels.tolist()
    turns: dict[int, int] = {}
    ranked = []
    for row, label in enumerate(labels):
        turns[label] = turns.get(label, -1) + 1
        ranked.append((turns[label], label, row))
    return torch.tensor([row for _, _, row in sorted(ranked)[:SHOWN]])


@neutral()
def _model(nets: dict[str, nn.Module], images: Images, chosen: Tensor) -> dict[str, Any]:
    """All that the page's program needs to know, as JSON."""
    x, packing, described, answers = images.images[chosen], Packing(), {}, {}
    shape = tuple(x.shape[1:])
    for word, net in nets.items():
        ready = sized(deep_copy(net), shape).cpu().eval()
        described[word] = [packing.layer(layer) for layer in layers_of(ready, x[:2])]
        with torch.no_grad():
            answers[word] = [[float(f"{v:.6g}") for v in row] for row in ready(x).tolist()]
    if packing.bytes > LIMIT:
        raise ValueError(
            f"the network has {packing.bytes / 1e6:.1f} MB of weights in half floats; a page"
            f" carries at most {LIMIT / 1e6:.0f} MB"
        )
    shown = [packing.put(image) for image in x]
    classes = images.class_names or tuple(str(c) for c in range(len(answers["plain"][0])))
    return {
        "nets": described,
        "answers": answers,
        "images": shown,
        "labels": images.labels[chosen].tolist(),
        "rows": images.index[chosen].tolist(),
        "classes": list(classes),
        "shape": list(shape),
        "box": [images.low, images.high],
        "claimed": {"steps": CLAIMED.steps, "step": CLAIMED.relative_step},
        "sharpness": SHARPNESS,
        "kilobytes": round(packing.bytes / 1000),
        "numbers": packing.text(),
    }


def _render(model: dict[str, Any], **values: Any) -> str:
    """The page; its style is that of the reports."""
    rooms = [PackageLoader(f"retroact.{room}", ".") for room in ("playing", "reports")]
    environment = Environment(
        loader=ChoiceLoader(rooms), autoescape=True, undefined=StrictUndefined
    )
    told = json.dumps(model, allow_nan=False).replace("<", "\\u003c")
    values |= {"model": Markup(told), "version": __version__}
    return environment.get_template("playground.html").render(**model, **values)
