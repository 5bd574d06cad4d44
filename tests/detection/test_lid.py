"""LID and the detector against brute force and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from retroact.detection.lid import (
    Detection,
    auc,
    characteristics,
    cross_fit,
    detect,
    difference,
    lid,
    mean_auc,
)


def brute_force(query, normals, k):
    """One query at a time, in plain Python, as the formula stands."""
    far = sorted(math.dist(query, normal) for normal in normals)[1 : k + 1]
    return -k / sum(math.log(d / far[-1]) for d in far)


def test_lid_is_the_formula():
    g = torch.Generator().manual_seed(0)
    queries, normals = torch.rand(7, 5, generator=g), torch.rand(40, 5, generator=g)
    expected = [brute_force(q.tolist(), normals.tolist(), 6) for q in queries]
    assert lid(queries, normals, 6).tolist() == pytest.approx(expected, rel=1e-6)


def test_lid_estimates_a_known_dimension():
    """Points that fill a d-dimensional cube have LID d (Amsaleg et al. 2015); leaving the nearest
    out weighs 1/k."""
    g = torch.Generator().manual_seed(1)
    for d in (2, 8):
        inside = torch.zeros(4000, 20)
        inside[:, :d] = torch.rand(4000, d, generator=g)
        centre = torch.zeros(200, 20)
        centre[:, :d] = 0.45 + 0.1 * torch.rand(200, d, generator=g)
        assert float(lid(centre, inside, 200).mean()) == pytest.approx(d, rel=0.15)


def test_identical_images_give_a_number():
    same = torch.zeros(30, 4)
    assert lid(same, same, 5).isfinite().all()


def test_characteristics_take_each_image_among_the_normal_ones_of_its_batch():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    g = torch.Generator().manual_seed(2)
    normal, other = torch.rand(50, 1, 2, 2, generator=g), torch.rand(50, 1, 2, 2, generator=g)
    seen = characteristics(net, ["1"], normal, [other], k=5, batch=20)
    assert [s.shape for s in seen] == [(50, 3), (50, 3)]
    hidden = net[1](net[0](normal)).detach(), net[1](net[0](other)).detach()
    expected = [brute_force(q.tolist(), hidden[0][20:40].tolist(), 5) for q in hidden[1][20:40]]
    assert seen[1][20:40, 1].tolist() == pytest.approx(expected, rel=1e-5)
    assert not net[1]._forward_hooks


def test_a_last_batch_that_is_too_small_is_left_out_and_too_few_images_are_refused():
    net = nn.Flatten()
    assert len(characteristics(net, [], torch.rand(24, 1, 2, 2), k=5, batch=20)[0]) == 20
    with pytest.raises(ValueError, match="at least k \\+ 1 = 6"):
        characteristics(net, [], torch.rand(4, 1, 2, 2), k=5)
    with pytest.raises(ValueError, match="no module 'conv9'"):
        characteristics(net, ["conv9"], torch.rand(24, 1, 2, 2), k=5)
    with pytest.raises(ValueError, match="beside the normal ones"):
        characteristics(net, [], torch.rand(24, 1, 2, 2), [torch.rand(3, 1, 2, 2)], k=5)


def test_auc_is_scikit_learns_ties_included():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 9, 300).astype(float), rng.random(300) < 0.3
    assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


@pytest.mark.parametrize("classifier", ["lr", "mlp"])
def test_a_detector_finds_what_differs_and_nothing_else(classifier):
    rng = np.random.default_rng(0)
    normal, noisy = rng.normal(0, 1, (200, 4)), rng.normal(0, 1, (200, 4))
    assert detect(normal, noisy, rng.normal(2, 1, (200, 4)), classifier).auc > 0.9
    assert abs(detect(normal, noisy, rng.normal(0, 1, (200, 4)), classifier).auc - 0.5) < 0.15


def test_the_first_rows_train_and_the_rest_test():
    rng = np.random.default_rng(0)
    made = detect(*(rng.normal(0, 1, (50, 2)) for _ in range(3)))
    assert sorted(set(made.image)) == list(range(40, 50)) and made.adversarial.sum() == 10


def test_the_interval_of_a_difference_holds_the_truth_and_shrinks_with_n():
    rng = np.random.default_rng(0)

    def both(n):
        return [detect(*(rng.normal(m, 1, (n, 3)) for m in (0, 0, shift))) for shift in (0.5, 1.5)]

    few, many = difference(*both(100), draws=200), difference(*both(2000), draws=200)
    assert many[0] > 0 and many[1] - many[0] < few[1] - few[0]
    with pytest.raises(ValueError, match="as many"):
        detect(*(rng.normal(0, 1, (n, 3)) for n in (20, 20, 19)))


def shifted(n, by, seed=0):
    """LIDs of n images, clean, noisy, and adversarial ones that lie `by` farther out."""
    drawn = np.random.default_rng(seed).normal(size=(3, n, 4))
    drawn[2] += by
    return drawn


@pytest.mark.parametrize("n", [90, 1000])
def test_folds_test_every_image_once_by_a_detector_that_has_not_seen_it(n):
    folds = cross_fit(*shifted(n, 1.0), folds=5)
    tested = np.concatenate([np.unique(fold.image) for fold in folds])
    assert sorted(tested.tolist()) == list(range(n))
    assert all((np.bincount(fold.image)[fold.image] == 3).all() for fold in folds)
    if n == 1000:  # batches of 100 stay together
        assert all(len({int(i) // 100 for i in fold.image}) == 2 for fold in folds)
    by_chance = cross_fit(*shifted(n, 0.0), folds=5)
    assert mean_auc(folds, n)[0] > 0.85 and abs(mean_auc(by_chance, n)[0] - 0.5) < 0.15


def test_the_error_of_a_mean_auc_is_that_of_other_images():
    """Beside the spread of the AUC over 200 draws of the images."""
    n, areas, errors = 150, [], []
    for seed in range(200):
        normal, noisy, adversarial = shifted(n, 0.7, seed)
        scores = np.concatenate([normal, noisy, adversarial])[:, 0]
        image = np.tile(np.arange(n), 3)
        found = Detection(scores, np.repeat([False, False, True], n), image)
        halves = [Detection(scores[m], found.adversarial[m], image[m]) for m in halve(image)]
        area, added = mean_auc(halves, n)
        areas.append(area)
        errors.append(np.sqrt(np.square(added).sum()))
    assert float(np.mean(errors)) == pytest.approx(float(np.std(areas)), rel=0.15)


def halve(image):
    return image % 2 == 0, image % 2 == 1


def test_what_images_add_is_zero_on_the_whole():
    folds = cross_fit(*shifted(100, 1.0), folds=4)
    assert abs(mean_auc(folds, 100)[1].sum()) < 1e-9
