"""transfer_matrix: images crafted on each of several networks, judged on every other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.oracle import Network
from retroact.crafting.threat import ThreatModel
from retroact.evaluation.evaluate import decide, evaluate
from retroact.ground import neutral
from retroact.reading import Data, Net, Said, as_images, as_network
from retroact.shown import as_html, percent


@dataclass(frozen=True)
class TransferMatrix:
    """`robust[i][j]` is the share of `n` examples that network j decides rightly, clean and as the
    attack on network i left them; `clean[j]` its clean accuracy."""

    names: tuple[str, ...]
    n: int
    clean: tuple[float, ...]
    robust: tuple[tuple[float, ...], ...]

    def __str__(self) -> str:
        head, rows = self._table()
        return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])

    def _repr_html_(self) -> str:
        return as_html(f"What {self.n} examples lose, in per cent that stay right", *self._table())

    def _table(self) -> tuple[list[str], list[list[str]]]:
        head = ["crafted on", *(f"judged on {name} %" for name in self.names)]
        rows = [["nothing", *map(percent, self.clean)]]
        rows += [[a, *map(percent, row)] for a, row in zip(self.names, self.robust, strict=True)]
        return head, rows


@neutral()
def transfer_matrix(
    networks: Mapping[str, Net],
    data: Data,
    attack: Said[Attack],
    threat: Said[ThreatModel],
    *,
    seed: int = 0,
    chunk: int | None = None,
) -> TransferMatrix:
    """What every network withstands of the images that were crafted on each of them, alone: the
    attacker holds one and another is asked, as where a float network is public and its int8 form is
    deployed, or the reverse.

    Images that an attack did not break stay clean. `networks` go by their names, such as
    {"float": net, "int8": ra.change(net, ra.Int8(), train)}. Raises what `evaluate` raises.
    """
    nets = {name: as_network(net) for name, net in networks.items()}
    images = as_images(data, next(iter(nets.values()), None))
    clean = {name: decide(net, images.images).cpu() for name, net in nets.items()}
    right = {name: decided == images.labels for name, decided in clean.items()}
    rows = []
    for crafted_on in nets.values():
        record = evaluate(
            crafted_on, images, attack, threat, keep=len(images.labels), seed=seed, chunk=chunk
        )
        assert record.examples is not None
        x = torch.from_numpy(record.examples)
        left = [right[name] & _right(net, x, images.labels) for name, net in nets.items()]
        rows.append(tuple(_share(kept) for kept in left))
    shares = tuple(_share(r) for r in right.values())
    return TransferMatrix(tuple(nets), len(images.labels), shares, tuple(rows))


def _right(net: Network, x: Tensor, labels: Tensor) -> Tensor:
    return decide(net, x, attacked=True).cpu() == labels


def _share(right: Tensor) -> float:
    return float(right.to(torch.float64).mean())
