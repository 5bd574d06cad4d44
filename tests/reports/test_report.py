"""Reports from a store alone: every number on the page is the record's, and the page stands on its
own."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from retroact.evaluation.record import Record
from retroact.experiments.fields import CellFields
from retroact.experiments.store import Store
from retroact.files import write
from retroact.reports import html, plots, tables
from retroact.reports.report import report
from retroact.reports.tables import lines


def record(
    standing: int, n: int = 20, *, zero: int = 0, broken: int = 0, images: bool = False
) -> Record:
    """A record on which `standing` of `n` examples survive."""
    label = np.arange(n) % 10
    adversarial = np.where(np.arange(n) < standing, label, (label + 1) % 10)
    kept = np.random.default_rng(0).random((6, 3, 8, 8)).astype(np.float32)
    return Record(
        index=np.arange(n),
        label=label,
        target=np.full(n, -1),
        clean=label,
        adversarial=adversarial,
        distance=np.full((n, 4), 0.1, np.float32),
        size=np.full((n, 4), 1.0, np.float32),
        queries=np.full(n, 11),
        gradients=np.full(n, 10),
        zero_gradients=np.full(n, zero),
        nonfinite=np.arange(n) < broken,
        examples=kept if images else None,
        originals=kept * 0.9 if images else None,
        pedigree={"seconds": 1.5, "versions": "python 3, torch 2", "machine": "m", "device": "cpu"},
    )


def fields(net: str = "net", activation: str | None = None, eps: float = 0.1, **changed):
    plain = {
        "net": net,
        "activation": activation,
        "sites": "*",
        "source": None,
        "knowledge": "white",
    }
    attack = {"attack": "PGD(steps=40)", "threat": f"Linf(eps={eps})", "norm": "linf", "eps": eps}
    rest = {
        "goal": "Untargeted()",
        "data": "d[:20]",
        "beta": 0.0,
        "kernel": "sigmoid",
        "seed": 0,
        "dtype": "float32",
    }
    return CellFields(**plain | attack | rest | changed)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "s.sqlite") as made:
        made.put("a", "Cell(a)", fields(), record(12, images=True))
        made.put("b", "Cell(b)", fields(attack="FGSM()"), record(15))
        made.put("c", "Cell(c)", fields(activation="SReLU(alpha=100.0)"), record(20, zero=10))
        made.put("d", "Cell(d)", fields(eps=0.2), record(3, broken=2))
        yield made


def test_lines_carry_the_numbers_of_their_records(store):
    a, _, c, d = lines(store)
    assert a.numbers()["robust_accuracy"] == 0.6 and a.numbers()["n"] == 20
    assert a.numbers()["rho_linf"] == pytest.approx(0.1)
    assert a.network == "net" and c.network == "net + SReLU(alpha=100.0)"
    assert a.interval == pytest.approx((0.3866, 0.7812), abs=1e-4)
    assert json.loads(json.dumps(a.numbers()))["attack"] == "PGD(steps=40)"
    assert a.alarms() == []
    assert c.alarms() == ["100% of its gradients were exactly zero"]
    assert d.alarms() == ["NaN, infinity or logits all alike on 2 of 20 images"]


def test_only_like_is_compared_with_like(store):
    groups = tables.group_lines(lines(store))
    assert [(g[1], len(m)) for g, m in groups] == [("Linf(eps=0.1)", 3), ("Linf(eps=0.2)", 1)]
    (worst,) = tables.worst_cases(groups[0][1])
    assert (worst.network, worst.attacks, worst.accuracy) == ("net", 2, 0.6)


def test_markdown_and_csv_hold_every_cell(store):
    text = tables.markdown(lines(store))
    assert "| net | PGD(steps=40) | white | 100.0% | 60.0% (38.7%–78.1%) | 10.0% | 0% |" in text
    assert "**worst case of 2**" in text and text.count("\n|---|") == 2
    rows = tables.as_csv(lines(store)).splitlines()
    assert len(rows) == 5 and rows[0].startswith("key,net,activation")
    assert tables.as_csv([]) == ""


def test_the_page_stands_on_its_own_and_says_what_was_run(store, tmp_path):
    path = report(store, tmp_path / "page.html", title="A & B <ok>")
    text = path.read_text()
    assert not re.search(r"<(script|link|iframe)|(src|href)=.(?!data:|#)", text)
    assert "A &amp; B &lt;ok&gt;" in text
    assert (
        "60.0 <span" in text
        and "100% of its gradients were exactly zero: this number is too good" in text
    )
    assert "Accuracy against eps" in text and text.count("data:image/png;base64") == 1
    for said in ("<code>a</code>", "python 3, torch 2", "worst case of these 2"):
        assert said in text
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_notes_and_further_figures_stand_at_the_top(store):
    points = [
        SimpleNamespace(knob=k, clean=1.0, claimed=0.9, verified=0.4) for k in (0.0, 0.5, 1.0)
    ]
    figure = plots.tuning(points, "kappa", 0.5)
    text = html.page(lines(store), notes=["a <note>"], figures=[("the curve", figure)])
    assert "a &lt;note&gt;" in text and "<figcaption>the curve</figcaption>" in text
    assert text.index("the curve") < text.index("network and attack")


def test_an_empty_report_is_refused_and_a_failed_write_leaves_the_old_page(
    store, tmp_path, monkeypatch
):
    with pytest.raises(ValueError, match="nothing to report"):
        html.page([])
    path = write("old", tmp_path / "p.html")
    with pytest.raises(TypeError):
        write(None, path)  # type: ignore[arg-type]
    assert path.read_text() == "old" and len(list(tmp_path.glob(".*"))) == 0


def test_pictures_show_the_broken_first_and_need_kept_images(store):
    with pytest.raises(ValueError, match="kept no images"):
        plots.pictures(record(3))
    assert record(4, images=True)._broken_first(6) == [4, 5, 0, 1, 2, 3]
    assert plots.pictures(record(4, images=True)).startswith("<img")


def test_figures_are_the_same_every_time(store):
    group = tables.group_lines(lines(store))[0][1]
    for figure in (plots.bars, plots.curves):
        first = re.sub(r"[mp][0-9a-f]{10}|clip[0-9a-f]+", "", figure(group))
        assert first == re.sub(r"[mp][0-9a-f]{10}|clip[0-9a-f]+", "", figure(group))
