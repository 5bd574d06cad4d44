"""Annealed: one network in several forms, a kinder one for the first steps of an attack and a truer
one for the last.

    craft(Momentum(targets=9), Annealed([wide, narrower, narrow]), ...)

A kernel at a jump that is wide shows the way from afar and misleads near by; one that is narrow is
right near by and blind from afar. So an attack through kernels begins wide and ends narrow.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Annealed(nn.Module):
    """Computes with the form whose turn it is; all forms must decide alike and differ in their
    backward pass only.

    `progress(share)` says how much of a run is behind, from 0 to 1; `turn` is the form's number. An
    attack that does not say climbs the last form.
    Raises ValueError for no form.
    """

    def __init__(self, forms: Sequence[nn.Module]) -> None:
        super().__init__()
        if not forms:
            raise ValueError("expected at least one form of the network, got none")
        self.forms = nn.ModuleList(forms)
        self.turn = len(self.forms) - 1

    def progress(self, share: float) -> None:
        """Takes the form whose part of the run it is."""
        self.turn = min(int(share * len(self.forms)), len(self.forms) - 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.forms[self.turn](x)
        return out
