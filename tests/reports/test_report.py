"""Reports from a store alone: every number on the page is the record's, and the page stands on its
own."""

import json
import re

import numpy as np
import pytest

import retroact as ra
from retroact.cli import console
from retroact.evaluation.record import Record
from retroact.experiments.fields import CellFields
from retroact.experiments.store import Store
from retroact.files import write
from retroact.reports import html, plots, tables
from retroact.reports.kept import kept
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
    assert not re.search(r"<(link|iframe)|(src|href)=.(?!data:|#)|fetch", text)
    assert "A &amp; B &lt;ok&gt;" in text
    assert (
        "60.0 <span" in text
        and "100% of its gradients were exactly zero: this number is too good" in text
    )
    assert "Accuracy against eps" in text and text.count("data:image/png;base64") == 3 * 6
    assert f"retroact {ra.__version__}, python 3, torch 2" in text  # which ran the cell
    assert f"UTC by retroact {ra.__version__} from stored records" in text  # which wrote the page
    for said in ("<code>a</code>", "python 3, torch 2", "worst case of these 2"):
        assert said in text
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


def test_a_page_begins_with_what_it_comes_to(store):
    said = html.summary(lines(store))
    assert said.startswith(
        "Within Linf(eps=0.1) on d[:20] (n = 20) the attacks leave net 60.0 % of its decisions"
        " right; what net + SReLU(alpha=100.0) withstands is not known, for the attacks on it were"
        " blind; more settings below: 1. 2 of 4 numbers are too good"
    )
    one = html.summary(lines(store)[:1])
    assert one.endswith("the attacks leave net 60.0 % of its decisions right.")
    text = html.page(lines(store))
    assert text.index(said) < text.index("<figure") and 'alt=""' not in text
    assert "image 12, class 2, is taken for 3" not in text  # which was not kept
    assert 'role="img" aria-label="net under PGD(steps=40): 60.0 %; net under FGSM()' in text


def test_what_blind_attacks_leave_is_never_the_best(store, monkeypatch, capsys):
    sloped = fields(activation="SReLU(alpha=100.0)", attack="FGSM()")
    store.put("e", "Cell(e)", sloped, record(20))  # a weak attack that nobody doubts
    store.put("f", "Cell(f)", sloped, record(19, zero=10))  # but the blind one comes lower
    store.put("g", "Cell(g)", fields(activation="ReLU6()"), record(2))
    (group, _) = (members for _, members in tables.group_lines(lines(store)))
    worst = {w.network: w for w in tables.worst_of_each(group)}
    assert [name for name, w in worst.items() if w.blind] == ["net + SReLU(alpha=100.0)"]
    said = html.summary(lines(store))
    assert "net withstands most, 60.0 %" in said and "net + ReLU6() least, 10.0 %" in said
    assert "95.0 %" not in said and "100.0 %" not in said
    assert '<span class="alarm">not known</span>' in html.page(lines(store))
    assert "not known: the attacks were blind" in tables.markdown(lines(store))
    monkeypatch.setattr(console, "out", console.Console(width=100))
    console.print_lines(lines(store))
    (row,) = re.findall(r"worst case of these 3 .*", capsys.readouterr().out)
    assert row.split()[-2:] == ["not", "known"]
    store.put("h", "Cell(h)", sloped, record(7))  # which sees, and breaks more than they did
    assert not any(w.blind for w in tables.worst_of_each(lines(store, keys=["c", "e", "f", "h"])))


def test_a_record_by_itself_has_a_page_and_a_table(tmp_path):
    made = record(12, images=True)
    made.pedigree.update(network="mine", attack="PGD(steps=40)", threat="Linf(eps=0.1)")
    for what in (made, [made]):
        text = report(what, tmp_path / "r.html").read_text()
        assert "Within Linf(eps=0.1) on" in text and "the attacks leave mine 60.0 %" in text
    assert "| mine | PGD(steps=40) | white |" in report(made, tmp_path / "r.md").read_text()
    (row,) = json.loads(report(made, tmp_path / "r.json").read_text())
    assert (row["net"], row["robust_accuracy"], row["source"]) == ("mine", 0.6, None)
    assert report(record(3), tmp_path / "s.csv").read_text().count("a network") == 1


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
        record(3).pictures()
    assert record(4, images=True).broken_first(6) == [4, 5, 0, 1, 2, 3]
    assert record(4, images=True).pictures().axes


def test_a_card_says_what_each_attack_of_the_page_did_to_the_image(store):
    store.put("e", "Cell(e)", fields(attack="weak"), record(4))
    store.put("f", "Cell(f)", fields(activation="SReLU(alpha=100.0)"), record(3))
    (cell,) = kept(lines(store, images=True))  # the others kept none
    assert [card.name for card in cell.cards] == [f"image-{i}-a" for i in range(6)]
    card = cell.cards[5]
    assert (card.before, card.decided, card.says) == ("5", "5", "withstood")
    own, other = card.networks
    assert own.where == "on net" and own.sums == "broken by 1 of 3 attacks"
    assert [fate.result for fate in own.fates] == ["withstood", "withstood", "broke it"]
    assert other.sums == "broken by 1 of 2 attacks, 1 of them blind" and not other.fates


def test_figures_are_the_same_every_time(store):
    group = tables.group_lines(lines(store))[0][1]
    for figure in (plots.bars, plots.curves):
        first = re.sub(r"[mp][0-9a-f]{10}|clip[0-9a-f]+", "", figure(group))
        assert first == re.sub(r"[mp][0-9a-f]{10}|clip[0-9a-f]+", "", figure(group))


def test_tables_fit_the_terminal_break_no_word_and_say_where_they_cut(store, monkeypatch, capsys):
    monkeypatch.setattr(console, "out", console.Console(width=80))
    long = "PGD(steps=40, relative_step=1/30, loss='margin', restarts=7)"
    store.put("e", "Cell(e)", fields(attack=long), record(7))
    console.print_lines(lines(store))
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert f"  {long[:20]}" in said and long not in said and "… stands where a name" in said
    for word in ("under attack %", "worst case of these 3", "net + SReLU(alpha=100.0)"):
        assert word in said
    console.print_lines(lines(store, keys=["a"]))
    assert "…" not in capsys.readouterr().out
