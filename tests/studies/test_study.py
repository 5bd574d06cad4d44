"""A study: its items are found, its parts are printed, its numbers come from the store."""

import ast
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

import retroact as ra
from retroact.attacks.fgsm import FGSM
from retroact.crafting.threat import Linf
from retroact.evaluation.metrics import clean_accuracy, median_distance, robust_accuracy
from retroact.evaluation.record import to_bytes
from retroact.experiments.carried import as_json, carried_keys, read_json
from retroact.experiments.cell import Cell, Model
from retroact.experiments.facts import locked_key
from retroact.experiments.store import Store
from retroact.reports import studied
from retroact.reports.plots import Mark
from retroact.reports.studied import Claim, Figure, Item, Study, Table, Takeaway, Text, Weighed
from retroact.spec import key, spec
from retroact.studies import study as studies
from retroact.studies.desk import Desk, NotMeasuredError
from retroact.studies.published import claims, published
from retroact.studies.told import outcomes
from retroact.studies.truth import answer_by_network, answer_claim


@spec
class Tallied:
    data: str = "digits[:10]"

    def __call__(self) -> dict[str, Any]:
        return {"sum": sum(range(10**5))}


SVG = '<svg xmlns="http://www.w3.org/2000/svg"><path fill="var(--blue)"/></svg>'


def made(*parts, said=None, whole=True):
    item = Item(
        "figure_1",
        "Figure 1",
        parts,
        "retroact study x --only figure_1",
        ("mnist[:10]", "seed 0"),
        90.0,
    )
    said = {"a": "it <helps>"} if said is None else said
    return Study("x", "X", "A source.", (item,), said=said, whole=whole)


def test_published_numbers_carry_their_source_and_unknown_ones_are_none():
    assert published("jumprelu", "table1.graybox", "lenet_mnist", "kappa") == 1.0
    assert published("srelu", "figure2_3.mnist", "accuracy", "FGSM", "1", "0.3") == 8.69
    assert published("srelu", "no such figure", "x") is None
    assert claims("srelu")["mechanism"] == "why it works: signal-to-noise; gradient explosion"
    noise = claims("jumprelu")["deepfool_noise.mnist"]
    assert noise == "the noise that DeepFool needs, MNIST: a factor of about 2"


@pytest.mark.parametrize("paper", studies.PAPERS)
def test_what_a_claim_is_about_is_said_in_words_and_no_key_shows(paper):
    for name, text in claims(paper).items():
        assert "_" not in text.partition(":")[0] and not text.startswith(f"{name}:"), text


@pytest.mark.parametrize("paper", studies.PAPERS)
def test_every_item_has_a_title_and_makes_parts(paper):
    for name in studies.items(paper):
        module = studies.importlib.import_module(f"retroact.studies.{paper}.{name}")
        assert callable(module.make), name
        assert studies._title(module)[:5].lower() == name[:5], name


@pytest.mark.parametrize("paper", studies.PAPERS)
def test_no_item_imports_another(paper):
    """What several share is a module named for what it is."""
    names = studies.items(paper)
    for name in names:
        module = studies.importlib.import_module(f"retroact.studies.{paper}.{name}")
        tree = ast.parse(Path(module.__file__).read_text("utf-8"))
        imports = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        inner = {m.rpartition(".")[2] for m in imports if m.startswith(f"retroact.studies.{paper}")}
        assert not inner & set(names), f"{name} imports {inner & set(names)}"


def test_items_stand_in_the_papers_order(monkeypatch):
    names = ["figure_10", "figure_9", "truth", "table_1"]
    assert sorted(names, key=studies._place) == ["table_1", "figure_9", "figure_10", "truth"]


def test_an_unknown_paper_or_item_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="expected one of: jumprelu, srelu"):
        studies.items("madry")
    with (
        Store(tmp_path / "s.sqlite") as store,
        pytest.raises(ValueError, match="no item 'figure_99'"),
    ):
        studies.study("srelu", store, only=["figure_99"])


def test_a_page_escapes_what_is_said_and_shows_every_part():
    table = Table(
        "T", ("what", "measured", "difference"), (("<b>", 1.26, 1.26), ("x", None, float("nan")))
    )
    page = studied.page(
        made(Text("a `code` & **bold**"), table, Figure("F", SVG), Claim("a", "holds", "because"))
    )
    assert "it &lt;helps&gt;" in page and "it <helps>" not in page
    assert "<code>code</code> &amp; <strong>bold</strong>" in page
    assert "&lt;b&gt;" in page and "+1.3" in page and "–" in page
    named = SVG.replace("<svg", '<svg role="img" aria-label="F"')
    assert named in page and "holds" in page
    assert f"UTC by retroact {ra.__version__}" in page
    assert page.index("because") < page.index('id="figure_1"') < page.rindex(">holds</span>")


def test_a_claim_of_many_numbers_is_a_figure_beside_the_published_and_what_was_asked_for():
    marks = (Mark("net a", "DF", 1.4, (1.2, 1.6), published=2.1), Mark("net b", "DF", 3.0))
    claim = Claim("a", "holds", "net a 1.4", Weighed(marks, "times the noise", (1.5, math.inf)))
    page = studied.page(made(claim))
    table, item = page.split('<h2 id="figure_1"')
    assert "times the noise, asked for more than 1.5: 1 of 2 DF" in table
    assert "<details><summary>in numbers</summary>net a 1.4</details>" in table
    (name,) = re.findall(r'href="#([^"]*)">figure<', table)
    figure = item.split(f'id="{name}"')[1].split("</figure>")[0]
    assert 'aria-label="net a 1.4"' in figure
    told = re.findall(r">([^<>]+)</text>", figure)
    for said in ("net a", "net b", "DF", "published", "95 % interval", "asked for"):
        assert told.count(said) == 1, said
    nothing = Weighed((Mark("net a", "DF", math.nan),), "times the noise", (-math.inf, 1.0))
    drawn = studied.page(made(replace(claim, weighed=nothing)))
    assert "asked for less than 1: 0 of 1 DF" in drawn and ">net a</text>" in drawn
    assert Weighed(marks, "noise").said == "noise: DF 1.4 to 3"
    plain = studied.page(made(replace(claim, weighed=Weighed((), "times the noise"))))
    assert ">figure<" not in plain and "<svg" not in plain


def test_columns_of_words_wrap_and_numbers_do_not():
    verdict = "HARMFUL · MASKED by jump"
    rows = (
        ("net", "-4.5 (-9.9 to +1.0 points)", "INCONCLUSIVE", 1.0),
        ("other", "–", verdict, None),
    )
    table = Table("T", ("network", "difference", "verdict", "n"), rows)
    assert table.words == {0, 2}
    page = studied.page(made(table))
    assert (
        f"<td>{verdict}</td>" in page
        and "<td>INCONCLUSIVE</td>" in page
        and "<th>verdict</th>" in page
    )
    assert '<td class="number">-4.5 (-9.9 to +1.0 points)</td>' in page


def test_markdown_links_figures_that_stand_alone():
    text, figures = studied.markdown(made(Figure("F", SVG), Figure("G", SVG)), "x")
    assert "![F](x/figure_1-1.svg)" in text and set(figures) == {"figure_1-1.svg", "figure_1-2.svg"}
    assert "var(" not in figures["figure_1-1.svg"]
    assert "1.5 minutes" in text and "mnist[:10] · seed 0" in text


def test_a_claim_that_nothing_answers_is_listed_as_such_and_an_unknown_one_is_refused():
    assert made().unanswered == ["a"]
    row = f"| it <helps> | **cannot be told** | {studied.UNMEASURED} |  |"
    assert row in studied.markdown(made(), "x")[0].replace("&lt;", "<").replace("&gt;", ">")
    assert studied.UNMEASURED in studied.page(made())
    with pytest.raises(ValueError, match="no claim"):
        made(Claim("b", "holds", "")).claims  # noqa: B018


def test_some_items_by_themselves_say_nothing_of_the_other_claims():
    said = {"a": "it <helps>", "b": "it is free"}
    part = made(Claim("a", "does not hold", "because"), said=said, whole=False)
    assert part.unanswered == [] and "1 other claims are answered by items" in part.elsewhere
    text, page = studied.markdown(part, "x")[0], studied.page(part)
    assert "Of 1 claims of the paper that these items answer: 1 “does not hold”." in text
    for told in (text, page):
        assert studied.UNMEASURED not in told and "it is free" not in told
        assert part.elsewhere.split("`")[0] in told.replace("&#39;", "'")
    none = made(said=said, whole=False)
    assert none.lines == ["Made anew here: Figure 1."]
    assert "## Claims" not in studied.markdown(none, "x")[0] and "<table" not in studied.page(none)


def test_without_lines_of_its_own_a_page_begins_with_its_answers():
    said = {name: f"says {name}" for name in "abcdefghijkl"}
    answers = [Claim(name, "holds", "") for name in "abcdefghijk"]
    study = made(*answers, Claim("l", "does not hold", ""), said=said)
    assert len(study.lines) == studied.MOST
    assert study.lines[1] == "**does not hold**: says l (Figure 1)"
    assert study.lines[2] == "**holds**: says a (Figure 1)"


def test_a_page_begins_with_its_lines_in_their_order():
    parts = (Takeaway(5, "last"), Claim("a", "holds", "because"), Takeaway(2, "first"))
    text = studied.markdown(made(*parts), "x")[0]
    begin, end = text.index("## In short"), text.index("## Claims")
    assert text[begin:end].split("\n")[2:5] == [
        "1. Of 1 claims of the paper: 1 “holds”.",
        "2. first",
        "3. last",
    ]
    assert "first" not in text[end:] and "<li>first</li>" in studied.page(made(*parts))
    with pytest.raises(ValueError, match="at most 10 lines"):
        made(*[Takeaway(i, "") for i in range(10)]).lines  # noqa: B018


def test_no_difference_is_less_than_nothing_by_rounding():
    table = Table("T", ("what", "difference", "measured"), (("a", -0.04, -0.01), ("b", -0.06, 1.0)))
    assert [row[1:] for row in table.texts()] == [["+0.0", "0.0"], ["-0.1", "1.0"]]


def test_a_row_that_does_not_fit_its_head_is_refused():
    with pytest.raises(ValueError, match="expected 2 values"):
        Table("T", ("a", "b"), (("x",),))


def test_an_answer_follows_from_the_protocol_and_the_truth():
    assert answer_claim(False) == answer_claim(False, True) == "does not hold"
    assert answer_claim(True) == answer_claim(True, True) == "holds"
    assert answer_claim(True, False) == "holds under the paper's protocol only"


def test_an_answer_by_network_follows_from_each():
    assert answer_by_network([], []) == "cannot be told"
    assert answer_by_network([True, False], [True, True]) == "differs by network"
    assert answer_by_network([False, False], [True, True]) == "does not hold"
    assert answer_by_network([True, True], [True, False]).endswith("protocol only")
    assert answer_by_network([True, True], [True, True]) == "holds"
    assert answer_by_network([True, True], [True, True], missing=1) == "cannot be told"
    assert answer_by_network([True, False], [True, True], missing=1) == "differs by network"
    assert answer_by_network([False], [True], missing=1) == "does not hold"


def test_a_stored_desk_makes_nothing_and_takes_the_largest_that_is_there(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        small, large = Tallied("digits[:10]"), Tallied("digits[:20]")
        asked = {"digits[:20]": [large], "digits[:10]": [small]}
        stored, quick = Desk(store, stored=True), Desk(store, quick=True)
        assert stored.largest(list(asked), asked.get) == "digits[:20]" and stored.lacks([large])
        with pytest.raises(NotMeasuredError, match="lacks Tallied"):
            stored.facts(large)
        assert quick.largest(list(asked), asked.get) == "digits[:10]" and not quick.lacks([large])
        quick.facts(small)
        assert stored.largest(list(asked), asked.get) == "digits[:10]"
        assert Desk(store).largest(list(asked), asked.get) == "digits[:20]"
        assert stored.facts(small) == stored.again(small) and list(stored.keys) == list(quick.keys)


def test_a_plan_lacks_what_the_store_lacks_and_no_more(tmp_path):
    cells = [Cell(Model("digits-cnn"), f"digits[:{n}]", FGSM(), Linf(0.1)) for n in (8, 9)]
    with Store(tmp_path / "s.sqlite") as store:
        quick, planning = Desk(store, quick=True), Desk(store, plans=True)
        quick.facts(Tallied("digits[:10]"))
        quick.records(cells[:1], keep=2)
        with pytest.raises(NotMeasuredError) as said:
            planning.all_facts([Tallied("digits[:10]"), Tallied("digits[:20]")])
        assert list(said.value.lacks) == [Tallied("digits[:20]")]
        with pytest.raises(NotMeasuredError) as said:
            planning.records(cells)
        assert list(said.value.lacks) == cells[1:]
        assert planning.facts(Tallied("digits[:10]")) == quick.facts(Tallied("digits[:10]"))
        assert planning.records(cells[:1], keep=2)[0] == quick.records(cells[:1], keep=2)[0]
        with pytest.raises(NotMeasuredError):
            planning.records(cells[:1], keep=4)  # pictures of two are there


@spec
class Summed:
    data: str = "digits[:10]"
    derived: ClassVar[bool] = True

    def __call__(self, desk: Desk) -> dict[str, Any]:
        return {"twice": 2 * desk.facts(Tallied(self.data))["sum"]}


def test_derived_facts_are_filed_for_themselves_with_the_seconds_of_what_they_are_made_of(tmp_path):
    with Store(tmp_path / "s.sqlite") as store, Store(tmp_path / "other.sqlite") as other:
        desk = Desk(store)
        assert desk.derive([Summed()]) == [{"twice": 2 * sum(range(10**5))}]
        assert list(desk.keys) == [locked_key(Summed())]
        assert desk.seconds == store.read_facts(locked_key(Tallied()))[1] > 0
        store_json = tmp_path / "facts.json"
        store_json.write_text(as_json(store, desk.keys), "utf-8")
        assert carried_keys(store_json) == set(desk.keys) and read_json(store_json, other) == 1
        again = Desk(other, stored=True)
        assert again.derive([Summed()]) == desk.derive([Summed()])
        assert again.seconds == desk.seconds and again.lacks([Tallied()])
        assert again.lacks([Summed("digits[:20]")])


def test_what_is_told_of_a_record_is_what_it_says(tmp_path):
    cell = Cell(Model("digits-cnn"), "digits[:30]", FGSM(), Linf(0.1))
    with Store(tmp_path / "s.sqlite") as store:
        desk = Desk(store)
        (found,) = outcomes(desk, [cell], "gradients", "l2")
        record = store.read(key(cell.locked()))
    assert found.robust_accuracy == robust_accuracy(record)
    assert found.clean_accuracy == clean_accuracy(record)
    assert found.median_l2 == pytest.approx(median_distance(record))
    assert found.gradients.tolist() == record.gradients.tolist()
    assert len(json.dumps(found.facts())) < len(to_bytes(record)) / 2


def test_an_item_that_is_not_measured_says_so_and_how(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        made = studies.study("jumprelu", store, only=("figure_2", "figure_3"), stored=True)
        assert not list(store.facts())
        with pytest.raises(ValueError, match="leave quick=, large=, full="):
            studies.study("jumprelu", store, quick=True, stored=True)
    unmeasured, drawn = made.items
    assert isinstance(unmeasured.parts[0], Figure)  # as far as it goes
    assert (
        "not measured yet: `retroact study jumprelu --only figure_2`" in unmeasured.parts[-1].text
    )
    assert [type(part) for part in drawn.parts] == [Figure]
    assert "a quick run" not in studied.markdown(made, "x")[0]


def test_a_study_resumes_from_its_store_and_says_what_it_used(tmp_path, monkeypatch):
    cells = [Cell(Model("digits-cnn"), "digits[:20]", FGSM(), Linf(e)) for e in (0.1, 0.2)]
    with Store(tmp_path / "s.sqlite") as store:
        first, second = Desk(store), Desk(store)
        once = first.records([*cells, cells[0]])
        again = second.records(cells)
        second.records(cells[1:])
        timed = [Tallied(), Tallied(), Tallied(data="digits[:20]")]
        for what in timed:
            first.facts(what)
        second.all_facts(timed[1:])
        assert store.runs() == {row.key: 1 for row in store.rows()}
    assert len(once) == 3 and once[0] == once[2] == again[0]
    assert (
        list(first.used) == ["digits[:20]", "seed 0", "digits[:10]"]
        and first.seconds == second.seconds > 0
    )


def test_the_large_networks_of_a_quick_study_are_asked_for(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        asked = {"only": ("figure_3",), "quick": True}
        (plain,) = studies.study("jumprelu", store, **asked).items
        (large,) = studies.study("jumprelu", store, **asked, large=True).items
        assert (
            plain.command.endswith("figure_3 --quick")
            and large.command == plain.command + " --large"
        )
        (full,) = studies.study("jumprelu", store, **asked, large=True, full=("figure_3",)).items
        assert full.command.endswith("--only figure_3")
        with pytest.raises(ValueError, match="without quick= they are measured anyway"):
            studies.study("jumprelu", store, only=("figure_3",), large=True)


def test_an_item_of_a_quick_study_may_be_made_at_full_size(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        found = studies.study(
            "srelu", store, only=("figure_1", "figure_10"), quick=True, full=("figure_10",)
        )
        assert [item.command.endswith("--quick") for item in found.items] == [True, False]
        with pytest.raises(ValueError, match="without quick= all are"):
            studies.study("srelu", store, only=("figure_1",), full=("figure_1",))
        with pytest.raises(ValueError, match="has no item 'figure_99'"):
            studies.study("srelu", store, quick=True, full=("figure_99",))
