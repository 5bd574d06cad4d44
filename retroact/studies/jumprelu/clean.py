"""Clean accuracies, on all test images: they cost one look at each."""

from __future__ import annotations

from retroact.studies.desk import Desk
from retroact.studies.jumprelu.crafted import Clean
from retroact.studies.jumprelu.networks import Net
from retroact.studies.jumprelu.sizes import ALL, CLEAN


def clean_shares(desk: Desk, net: Net) -> tuple[int, dict[float, float]]:
    """On how many images, and the accuracy (from 0 to 1) at kappa 0 and at the paper's kappa."""
    kappas = (0.0, net.kappa)
    asked = {n: Clean(tuple(net.model(k) for k in kappas), net.slice(n)) for n in CLEAN.of(net)}
    n = desk.largest(CLEAN.of(net), lambda n: [asked[n]])
    return n, dict(zip(kappas, desk.facts(asked[n])["clean"], strict=True))


def clean_curve(desk: Desk, net: Net, kappas: tuple[float, ...]) -> dict[float, float] | None:
    """The accuracy of all test images at each of `kappas`; None for a quick desk, and where it is
    not measured yet."""
    # one for each kappa, so that a stop loses one
    asked = [Clean((net.model(kappa),), net.slice(ALL)) for kappa in kappas]
    if desk.quick or desk.lacks(asked):
        return None
    shares = (float(f["clean"][0]) for f in desk.all_facts(asked))
    return dict(zip(kappas, shares, strict=True))
