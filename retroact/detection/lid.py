"""Local intrinsic dimensionality as a detector of adversarial images (Ma et al. 2018,
arXiv:1801.02613).

An image's LID at a layer is estimated from its distances to the clean images of the same batch:

    LID = −k / Σ_j log(d_j / d_k)        d_1 ≤ … ≤ d_k, the nearest one of all left out

A classifier on the LIDs of all layers tells adversarial images (1) from clean and noisy ones (0).
What follows the public code rather than the text: the nearest clean image is left out for
adversarial and noisy queries too; features are scaled to [0, 1] over all rows, test rows among
them; the first part of each class trains, the rest tests.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retroact.crafting.oracle import evaluating, in_float

Floats = NDArray[np.float64]
TRAINING = 0.8
"""The share of each class that trains the detector."""


def lid(queries: Tensor, normals: Tensor, k: int = 20) -> Tensor:
    """The LID (m,) of `queries` (m, d) among `normals` (b, d), the nearest of these left out.

    Raises ValueError where there are no k + 1 normals.
    """
    if len(normals) < k + 1:
        raise ValueError(
            f"expected at least k + 1 = {k + 1} normal images in a batch, got {len(normals)};"
            " lower k"
        )
    # by differences: products lose the small distances of an image to its own adversarial one
    far = torch.cdist(
        queries.double(), normals.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    near = far.sort(1).values[:, 1 : k + 1].clamp_min(torch.finfo(torch.float64).tiny)
    return -k / (near / near[:, -1:]).log().sum(1).clamp_max(-1e-12)


def characteristics(
    net: nn.Module,
    layers: Sequence[str],
    normal: Tensor,
    others: Sequence[Tensor] = (),
    *,
    k: int = 20,
    batch: int = 100,
) -> list[Floats]:
    """The LIDs (n, layers + 2) of `normal` (n, …) and of each of `others`: at the input, at
    the outputs of the modules `layers`, and at the logits, each among the normal images of its own
    batch.

    `others` stand row by row beside `normal`. A last batch without k + 1 images is left out.
    """
    for other in others:
        if other.shape != normal.shape:
            raise ValueError(
                f"expected images {tuple(normal.shape)} beside the normal ones, got"
                f" {tuple(other.shape)}"
            )
    lids: list[list[Tensor]] = [[] for _ in range(1 + len(others))]
    with torch.no_grad(), evaluating(net), _record(net, layers) as run:
        for rows in torch.arange(len(normal)).split(batch):
            if len(rows) < k + 1:
                continue
            clean = run(normal[rows])
            for kept, images in zip(lids, (normal, *others), strict=True):
                seen = run(images[rows])
                kept.append(
                    torch.stack([lid(q, c, k) for q, c in zip(seen, clean, strict=True)], dim=1)
                )
    if not lids[0]:
        raise ValueError(
            f"expected a batch of at least k + 1 = {k + 1} images, got {len(normal)}; give more"
        )
    return [torch.cat(kept).numpy() for kept in lids]


@contextmanager
def _record(net: nn.Module, layers: Sequence[str]) -> Iterator[Callable[[Tensor], list[Tensor]]]:
    """A function that gives what flows through input, layers and logits, each (n, d); hooks go when
    it ends."""
    modules = dict(net.named_modules())
    missing = [name for name in layers if name not in modules]
    if missing:
        raise ValueError(
            f"this network has no module {missing[0]!r}; it has"
            f" {', '.join(n for n in modules if n)}"
        )
    seen: dict[str, Tensor] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(module: nn.Module, given: Any, output: Tensor) -> None:
            seen[name] = output

        return record

    def run(images: Tensor) -> list[Tensor]:
        logits = in_float(net, images)
        return [v.flatten(1) for v in (images, *(seen[name] for name in layers), logits)]

    hooks = [modules[name].register_forward_hook(recorder(name)) for name in layers]
    try:
        yield run
    finally:
        for hook in hooks:
            hook.remove()


# ----------------------------------------------------------------------------------- the detector


@dataclass(frozen=True, eq=False)
class Detection:
    """A trained detector on its test rows: `scores` (m,) of being adversarial, `adversarial` (m,)
    the truth, and `image` (m,), which original each row comes from."""

    scores: Floats
    adversarial: NDArray[np.bool_]
    image: NDArray[np.int64]

    @property
    def auc(self) -> float:
        """The area under the ROC curve, 0.5 for a coin."""
        return auc(self.scores, self.adversarial)


def detect(
    normal: Floats,
    noisy: Floats,
    adversarial: Floats,
    classifier: Literal["lr", "mlp"] = "lr",
    *,
    seed: int = 0,
) -> Detection:
    """Trains a detector on the first rows of the three classes (n, layers) and scores the rest.

    "lr" is scikit-learn's LogisticRegressionCV, "mlp" a tanh network 64-32-16, both as the authors
    set them.
    """
    rows = _Rows.of(normal, noisy, adversarial)
    return rows.score(rows.image >= int(TRAINING * len(normal)), classifier, seed)


def cross_fit(
    normal: Floats,
    noisy: Floats,
    adversarial: Floats,
    classifier: Literal["lr", "mlp"] = "lr",
    *,
    folds: int = 5,
    seed: int = 0,
) -> list[Detection]:
    """The same in `folds` of images: each is scored by a detector that was trained on the other
    folds, so that every image is tested. Folds are blocks of images, whole batches of 100 where
    there are as many batches as folds."""
    rows = _Rows.of(normal, noisy, adversarial)
    fold = _fold(rows.image, len(normal), folds)
    return [rows.score(fold == v, classifier, seed) for v in range(folds)]


def _fold(image: NDArray[np.int64], n: int, folds: int, batch: int = 100) -> NDArray[np.int64]:
    if n >= folds * batch:
        return image // batch % folds
    return image * folds // n


@dataclass(frozen=True, eq=False)
class _Rows:
    """Features scaled to [0, 1] (m, layers), which of them are adversarial, and of which image."""

    scaled: Floats
    adversarial: NDArray[np.bool_]
    image: NDArray[np.int64]

    @classmethod
    def of(cls, normal: Floats, noisy: Floats, adversarial: Floats) -> _Rows:
        n = len(normal)
        if not len(noisy) == len(adversarial) == n or n < 10:
            raise ValueError(
                f"expected as many noisy and adversarial rows as normal ones, at least 10, got {n}"
            )
        rows = np.concatenate([normal, noisy, adversarial])
        low, high = rows.min(0), rows.max(0)
        scaled = (rows - low) / np.where(high > low, high - low, 1.0)
        return cls(scaled, np.repeat([False, False, True], n), np.tile(np.arange(n), 3))

    def score(self, test: NDArray[np.bool_], classifier: str, seed: int) -> Detection:
        """The detector that all rows but `test` train, on these."""
        with warnings.catch_warnings():
            # scikit-learn announces attributes that nobody reads here
            warnings.simplefilter("ignore", FutureWarning)
            model = _classifier(classifier, seed).fit(self.scaled[~test], self.adversarial[~test])
        scores = np.asarray(model.predict_proba(self.scaled[test])[:, 1], dtype=np.float64)
        return Detection(scores, self.adversarial[test], self.image[test])


def _classifier(name: str, seed: int) -> Any:
    if name == "lr":
        from sklearn.linear_model import LogisticRegressionCV

        return LogisticRegressionCV(max_iter=1000)
    if name == "mlp":
        from sklearn.neural_network import MLPClassifier

        return MLPClassifier((64, 32, 16), activation="tanh", max_iter=1000, random_state=seed)
    raise ValueError(f'expected the classifier "lr" or "mlp", got {name!r}')


def auc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """P(score of a positive > score of a negative), ties by half: Mann and Whitney's U over the
    pairs."""
    both = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(both[2])
    ranks = (ends - (both[2] - 1) / 2)[both[1]]
    p, m = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * m)) if p and m else float("nan")


def difference(
    one: Detection, other: Detection, *, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """A 95 % bootstrap interval of other.auc − one.auc: images are drawn with their clean, noisy
    and adversarial rows, and apart for the two detectors, whose images need not be the same."""
    rng = np.random.default_rng(seed)
    drawn = [_draw(other, rng) - _draw(one, rng) for _ in range(draws)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _draw(of: Detection, rng: np.random.Generator) -> float:
    images = np.unique(of.image)
    times = np.bincount(rng.choice(images, len(images)), minlength=int(images.max()) + 1)[of.image]
    return auc(np.repeat(of.scores, times), np.repeat(of.adversarial, times))


def mean_auc(folds: Sequence[Detection], n: int) -> tuple[float, Floats]:
    """The mean of the folds' AUCs, and what each of n images adds to its error, (n,): the sum of
    their squares is its variance.

    An image's clean, noisy and adversarial rows stand together: with F the share of rows of a kind
    that score less, ties by half, it adds ((F₀(s₊) − A) + mean over its others of (1 − F₁(s) − A))
    / (V m) in a fold of m images and AUC A of V (DeLong et al. 1988, doi:10.2307/2531595; in folds
    LeDell et al. 2015, doi:10.1214/15-EJS1035). Given the detectors: that others would be trained
    on other images is not in it.
    """
    added = np.zeros(n)
    for fold in folds:
        area, positive = fold.auc, fold.adversarial
        images, times = np.unique(fold.image[~positive], return_counts=True)
        each = np.zeros(n)
        each[images] = times
        below = _share_below(fold.scores[positive], fold.scores[~positive])
        above = 1 - _share_below(fold.scores[~positive], fold.scores[positive])
        part = np.zeros(n)
        np.add.at(part, fold.image[positive], below - area)
        np.add.at(part, fold.image[~positive], (above - area) / each[fold.image[~positive]])
        added += part / (len(folds) * len(images))
    return float(np.mean([fold.auc for fold in folds])), added


def _share_below(scores: Floats, others: Floats) -> Floats:
    """Which share of `others` lies below each of `scores`, ties by half."""
    ranked = np.sort(others)
    sides = (np.searchsorted(ranked, scores, side) for side in ("left", "right"))
    return np.asarray(sum(sides) / (2 * len(others)), dtype=np.float64)
