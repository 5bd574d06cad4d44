"""A study: its items are found, its parts are printed, its numbers come from the store."""

import ast
from pathlib import Path
from typing import Any

import pytest

from retroact.experiments.store import Store
from retroact.reports import studied
from retroact.reports.studied import Claim, Figure, Item, Study, Table, Text
from retroact.spec import spec
from retroact.studies import study as studies
from retroact.studies.desk import Desk
from retroact.studies.published import claims, published
from retroact.studies.truth import answer_claim


@spec
class Counted:
    data: str = "digits[:10]"

    def __call__(self) -> dict[str, Any]:
        return {"sum": sum(range(10**5))}


SVG = '<svg xmlns="http://www.w3.org/2000/svg"><path fill="var(--blue)"/></svg>'


def made(*parts, said=None):
    item = Item(
        "figure_1",
        "Figure 1",
        parts,
        "retroact study x --only figure_1",
        ("mnist[:10]", "seed 0"),
        90.0,
    )
    return Study("x", "X", "A source.", (item,), said={"a": "it <helps>"} if said is None else said)


def test_published_numbers_carry_their_source_and_unknown_ones_are_none():
    assert published("jumprelu", "table1.graybox", "lenet_mnist", "kappa") == 1.0
    assert published("srelu", "figure2_3.mnist", "accuracy", "FGSM", "1", "0.3") == 8.69
    assert published("srelu", "no such figure", "x") is None
    assert claims("srelu")["mechanism"] == "mechanism: signal-to-noise; gradient explosion"
    assert (
        claims("jumprelu")["time.7_iterations.wideresnet_minutes.jumprelu"]
        == "time, 7 iterations, wideresnet minutes, jumprelu: 5"
    )


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
    assert SVG in page and "holds" in page


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
    assert "not answered" in studied.markdown(made(), "x")[0]
    with pytest.raises(ValueError, match="no claim"):
        made(Claim("b", "holds", "")).claims  # noqa: B018


def test_a_row_that_does_not_fit_its_head_is_refused():
    with pytest.raises(ValueError, match="expected 2 values"):
        Table("T", ("a", "b"), (("x",),))


def test_an_answer_follows_from_the_protocol_and_the_truth():
    assert answer_claim(False) == answer_claim(False, True) == "does not hold"
    assert answer_claim(True) == answer_claim(True, True) == "holds"
    assert answer_claim(True, False) == "holds under the paper's protocol only"


def test_a_study_resumes_from_its_store_and_says_what_it_used(tmp_path, monkeypatch):
    from retroact.attacks.fgsm import FGSM
    from retroact.crafting.threat import Linf
    from retroact.experiments.cell import Cell, Model

    cells = [Cell(Model("digits-cnn"), "digits[:20]", FGSM(), Linf(e)) for e in (0.1, 0.2)]
    with Store(tmp_path / "s.sqlite") as store:
        first, second = Desk(store), Desk(store)
        once = first.records([*cells, cells[0]])
        again = second.records(cells)
        second.records(cells[1:])
        timed = [Counted(), Counted(), Counted(data="digits[:20]")]
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
        assert found.items[1].title in found.notes[0] and found.items[0].title not in found.notes[0]
        with pytest.raises(ValueError, match="without quick= all are"):
            studies.study("srelu", store, only=("figure_1",), full=("figure_1",))
        with pytest.raises(ValueError, match="has no item 'figure_99'"):
            studies.study("srelu", store, quick=True, full=("figure_99",))
