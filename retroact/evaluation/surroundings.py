"""Where something was run: what a pedigree says of the device, the machine and the versions."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import numpy as np
import torch

from retroact.crafting.oracle import Network, device_of


@dataclass(frozen=True)
class Surroundings:
    """The network's device, torch's threads, the machine, and the versions of what computes."""

    device: str
    threads: int
    machine: str
    versions: str


def surroundings(network: Network) -> Surroundings:
    """Those of `network`, here and now."""
    return Surroundings(
        device=str(device_of(network)),
        threads=torch.get_num_threads(),
        machine=f"{platform.machine()} {platform.system()}",
        versions=(
            f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
        ),
    )
