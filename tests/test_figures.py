"""Figures that results draw of themselves: what stands in them is what was measured."""

import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from matplotlib.figure import Figure

import retroact as ra
from retroact.experiments.tuning import TUNED, Tuning
from retroact.figures import Curve, bars, curves
from retroact.retrofitting.surgery import Retrofit
from retroact.training.hardening import Dose, Hardened

LINF = ra.Linf(0.1)


@cache
def audited():
    return ra.audit("digits-cnn", ra.JumpReLU(0.5), "digits[:20]", LINF, battery="quick")


@cache
def attacked():
    return ra.evaluate("digits-cnn", "digits[:20]", "DeepFool", "L2(2.0)", keep=8)


@cache
def tuned() -> Tuning:
    return ra.tune("digits-cnn", "JumpReLU", "digits/validation[:10]", LINF, grid=(0.0, 0.4, 0.8))


def lengths(figure: Figure) -> list[float]:
    """The bars of a figure, from the top, in per cent."""
    drawn = sorted(figure.axes[0].patches, key=lambda bar: bar.get_y())
    return [bar.get_width() / 100 for bar in drawn]


def line(figure: Figure, name: str):
    return next(line for line in figure.axes[0].lines if line.get_label() == name)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_an_audit_draws_claimed_beside_verified_before_and_after():
    audit, figure = audited(), audited().plot()
    c = audit.verdict.counts
    assert lengths(figure) == pytest.approx([*c.clean, *c.claimed, *c.verified])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [
        "clean",
        "claimed",
        "verified",
    ]
    assert legend(figure) == [f"before: {audit.names.before}", f"after: {audit.names.after}"]
    assert audit.verdict.effect in figure.get_suptitle() and "n = 20" in figure.get_suptitle()


def test_each_bar_has_wilsons_interval():
    figure = bars(("verified",), {"before": (0.25,), "after": (0.5,)}, 20)
    drawn = sorted(tuple(line.get_xdata()) for line in figure.axes[0].lines)
    expected = [[100 * v for v in ra.wilson(k, 20)] for k in (5, 10)]
    assert np.allclose(drawn, expected)


def test_a_check_draws_what_was_reported():
    check = ra.check("digits-cnn", "digits[:10]", LINF, reported=90.0, battery="quick")
    figure = check.plot()
    assert lengths(figure) == pytest.approx([check.clean, check.claimed, check.verified])
    assert list(line(figure, "reported").get_xdata()) == [90.0, 90.0]
    assert figure.get_suptitle().startswith(check.statement)


def test_a_record_draws_what_is_right_within_each_length():
    record = attacked()
    drawn = line(record.plot("l2"), "DeepFool(steps=50)")
    radii, shares = drawn.get_xdata(), drawn.get_ydata()
    assert radii[0] == 0 and shares[0] == pytest.approx(100 * ra.clean_accuracy(record))
    assert (
        shares[-1] == pytest.approx(100 * ra.robust_accuracy(record))
        and (np.diff(shares) <= 0).all()
    )
    within = ra.evaluate("digits-cnn", "digits[:20]", "DeepFool", "L2(1.0)")
    at_one = shares[np.searchsorted(radii, 1.0, side="right") - 1]
    assert 0 < at_one == pytest.approx(100 * ra.robust_accuracy(within))


def test_a_record_says_what_it_can_draw():
    with pytest.raises(ValueError, match="expected one of l0, l1, l2, linf"):
        attacked().plot("l3")
    with pytest.raises(ValueError, match="kept no images"):
        ra.evaluate("digits-cnn", "digits[:2]", "FGSM", LINF).pictures()


def test_pictures_have_the_image_the_attack_and_the_difference():
    record = attacked()
    grid = np.reshape(record.pictures(3).axes, (3, 3))
    shown = [[axes.images[0].get_array() for axes in row] for row in grid]
    first = record.broken_first(3)[0]
    assert record.right[first] and not record.robust[first]
    assert np.allclose(shown[0][0], record.originals[first, 0])
    assert np.allclose(shown[1][0], record.examples[first, 0])
    assert np.allclose(shown[2][0], np.abs(shown[1][0] - shown[0][0]))
    assert grid[1, 0].get_title() == f"seen as {record.adversarial[first]}"


def test_a_tuning_draws_three_curves_and_marks_what_it_recommends():
    figure, points = tuned().plot(), tuned().points
    names = ("clean", "claimed", "verified")
    for name, words in zip(names, TUNED, strict=True):
        drawn = line(figure, words)
        assert list(drawn.get_xdata()) == [0.0, 0.4, 0.8]
        assert list(drawn.get_ydata()) == [100 * getattr(p, name) for p in points]
    assert legend(figure) == list(TUNED) and "verified" not in TUNED
    assert [tuned().best.knob] * 2 in [list(x.get_xdata()) for x in figure.axes[0].lines]


def test_what_was_hardened_draws_its_doses_in_order():
    doses = (Dose(0.0, 0.9), Dose(1.0, 0.8), Dose(0.5, 0.85))
    net = ra.load("digits-cnn")
    hard = Hardened(net, ra.Hardening(), 10, 100, 0.5, doses, 1.0, "digits", held=40)
    drawn = line(hard.plot(), "clean")
    assert list(drawn.get_xdata()) == [0.0, 0.5, 1.0]
    assert list(drawn.get_ydata()) == [90.0, 85.0, 80.0]
    with pytest.raises(ValueError, match="harden with held="):
        Hardened(net, ra.Hardening(), 10, 100, 1.0, (), 1.0, "digits").plot()


def test_a_store_draws_robust_accuracy_over_eps(tmp_path):
    cells = ra.grid("digits-cnn", [None], "FGSM", ["Linf(0.05)", "Linf(0.1)"], "digits[:10]")
    store = ra.Store(tmp_path / "s.sqlite")
    records = ra.sweep(cells, store)
    drawn = store.plot().axes[0].lines[0]
    assert list(drawn.get_xdata()) == [0.0, 0.05, 0.1]
    shares = [ra.clean_accuracy(records[0]), *map(ra.robust_accuracy, records)]
    assert drawn.get_ydata() == pytest.approx([100 * v for v in shares])
    ra.sweep([ra.Cell("digits-cnn", "digits[:5]", "FGSM", "Linf(0.1)")], store)
    with pytest.raises(ValueError, match="of one data set, norm and goal"):
        store.plot()
    with pytest.raises(ValueError, match="got no cells"):
        store.plot("nothing*")


def test_a_record_as_a_frame_has_a_row_for_each_example():
    record, frame = attacked(), attacked().frame()
    assert len(frame) == 20 and frame["robust"].mean() == ra.robust_accuracy(record)
    assert (frame["distance_l2"] == record.distance[:, 2]).all()
    assert list(frame["index"]) == record.index.tolist()


def test_a_notebook_shows_a_figure_once_and_without_pyplot():
    figure = curves([Curve("a", (0, 1), (1.0, 0.5), n=10)], "x", "y")
    assert isinstance(figure, Figure) and figure._repr_png_().startswith(b"\x89PNG")
    code = "import sys, retroact.figures; assert 'matplotlib.pyplot' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_retrofit_draws_its_activation_beside_the_relu():
    figure = ra.retrofit("digits-cnn", ra.JumpReLU(0.5)).retrofit.plot()
    own, relu = line(figure, "JumpReLU(kappa=0.5)"), line(figure, "ReLU")
    z, y = own.get_xdata(), own.get_ydata()
    assert np.array_equal(y, np.where(z > 0.5, z, 0)) and np.ptp(z) > 1
    assert np.array_equal(relu.get_ydata(), np.maximum(z, 0))


def test_a_retrofit_that_differs_from_site_to_site_has_a_panel_for_each():
    each = ra.PerSite((ra.JumpReLU(0.5), ra.SReLU(2.0)))
    figure = Retrofit(each).plot()
    assert len(figure.axes) == 2 and "SReLU" in figure.axes[1].lines[1].get_label()


def test_what_is_no_function_of_one_number_is_not_drawn():
    with pytest.raises(ValueError, match="function of one number"):
        Retrofit(ra.KWTA(0.2)).plot()


def test_the_frame_of_a_tuning_has_a_row_for_each_value():
    frame = tuned().frame()
    assert list(frame.columns) == ["kappa", "clean", "claimed", "verified", "best", "largest"]
    assert frame.kappa.tolist() == [0.0, 0.4, 0.8]
    assert frame.verified.tolist() == [p.verified for p in tuned().points]
    assert frame[frame.best].kappa.tolist() == [tuned().best.knob]


def test_the_frame_of_a_verdict_has_a_row_for_each_network():
    frame, counts = audited().verdict.frame(), audited().verdict.counts
    assert frame.network.tolist() == ["before", "after"] and set(frame.n) == {counts.n}
    assert tuple(frame.verified) == counts.verified and tuple(frame.claimed) == counts.claimed


def test_a_record_is_written_as_parquet_with_a_row_for_each_example(tmp_path):
    import pandas as pd

    frame = pd.read_parquet(ra.report(attacked(), tmp_path / "rec.parquet"))
    assert frame.robust.tolist() == attacked().robust.tolist() and "attack" in frame
    both = pd.read_parquet(ra.report([attacked(), attacked()], tmp_path / "two.parquet"))
    assert len(both) == 2 * len(frame)
