"""Figure 5: what DF∞ does to MNIST, at kappa 0 and at kappa 1

Five pictures for each image, as in the paper: the clean image, the adversarial one and |difference|
for the network as trained, and both again for the retrofit. The paper shows digits of its own
choice; these are the first ones.
"""

from __future__ import annotations

from collections.abc import Iterator

from retroact.reports.studied import Figure, Part, Text
from retroact.studies.desk import Desk
from retroact.studies.jumprelu.networks import LENET
from retroact.studies.jumprelu.pictures import KEPT, commonest, rows_of_five, shots


def make(desk: Desk) -> Iterator[Part]:
    if not LENET.here:
        yield Text(f"{LENET.title}, {LENET.missing}.")
        return
    images = shots(desk, LENET, "deepfool_linf", 3)
    yield Figure(
        f"{LENET.title}, DF∞: the first test images that both networks decide rightly and lose."
        " Noise is ‖x_adv − x‖∞ / ‖x‖∞ in normalised space, L∞ is in pixels; red is |difference|,"
        " one scale for each row.",
        rows_of_five(images, LENET.kappa),
    )
    (_, few, broken_0), (class_, many, broken) = commonest(desk, LENET, "deepfool_linf")
    yield Text(
        f"Of the first {KEPT} test images {broken} are broken at kappa {LENET.kappa:g}, and {many}"
        f" of these are taken for a {class_} (at kappa 0 {few} of {broken_0} for one class). A"
        " single step of DeepFool goes so far that units fall below kappa all at once, and a"
        " network whose units are all silent decides by its last bias alone: large noise here does"
        " not say that less would not do."
    )
