"""The pages in a browser: no error, no wider than a phone, tables that sort, links that open what
they point at."""

from dataclasses import replace

import pytest
from browser import look
from test_audit_report import Side, Told, broken, stored
from test_compared import JUMP, NONE
from test_report import fields, record
from test_walk import networks

from retroact.reports import audited, compared, html, plots, studied, walk
from retroact.reports.studied import Claim, Figure, Item, Study, Table, Text
from retroact.reports.tables import Line

PROBE = """
addEventListener("load", async () => {
  const table = [...document.querySelectorAll("table.sortable")].find((t) =>
    t.tBodies[0].rows[1] && t.tHead.querySelector("th.number"));
  const column = (i) => [...table.tBodies[0].rows].map((row) => row.cells[i].innerText);
  const at = [...table.tHead.rows[0].cells].findIndex((c) => c.classList.contains("number"));
  const seen = [column(at)];
  for (let i = 0; i < 2; i++) {
    table.tHead.rows[0].cells[at].querySelector("button").click();
    seen.push(column(at));
  }
  const folded = document.querySelector("details[id]");
  const closed = folded && !folded.open;
  if (folded) location.hash = folded.id;
  await new Promise((go) => setTimeout(go, 200));
  dispatchEvent(new Event("beforeprint"));
  parent.postMessage({ width: innerWidth, needs: document.documentElement.scrollWidth, seen,
    sorted: table.tHead.rows[0].cells[at].getAttribute("aria-sort"),
    opened: !folded || (closed && folded.open),
    printed: document.querySelectorAll("details:not([open])").length,
    silent: [...document.images].filter((i) => !i.alt).length +
      [...document.querySelectorAll("svg")].filter((s) => !s.getAttribute("aria-label")).length,
    broken: [...document.querySelectorAll("a[href^='#']")].map((a) => a.hash.slice(1))
      .filter((id) => !document.getElementById(decodeURIComponent(id))) }, "*");
});"""


def audit_page():
    sides = [broken(1, 0), broken(2, 1)]
    told = Told(stored(), ())
    attacks = told.numbers().attacks
    told.sides = tuple(Side(sides, attacks=list(a)) for a in attacks)
    return audited.page(told)


def ledger_page():
    return compared.page([compared.Row(NONE), compared.Row(JUMP), compared.Row(replace(JUMP, n=9))])


def sweep_page():
    lines = [Line("a", fields(), record(12, images=True)), Line("b", fields(eps=0.2), record(3))]
    return html.page([*lines, Line("c", fields(attack="FGSM()"), record(15))])


def demo_page():
    return walk.page(networks(), title="t", intro="i", commands=["retroact audit"])


def study_page():
    table = Table("T", ("what", "measured"), (("a", 2.0), ("b", 10.0), ("c", None)))
    bars = plots.panels([plots.Panel("p", [plots.Series("s", [1, 2], [3, 4])])])
    parts = Text("a"), Figure("F", bars), table, replace(table, title="U", folded=True)
    item = Item("figure_1", "Figure 1: x", (*parts, Claim("a", "holds", "because")), "retroact x")
    return studied.page(Study("x", "X", "A source.", (item,), {"a": "it helps", "b": "it is free"}))


@pytest.mark.slow
@pytest.mark.parametrize("page", [audit_page, ledger_page, sweep_page, study_page, demo_page])
def test_the_page_works_at_both_widths(page, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page())
    for width, told in look(path, tmp_path, PROBE).items():
        assert told["needs"] <= width, f"the page is wider than {width} px"
        assert told["silent"] == 0 and told["broken"] == [] and told["opened"]
        assert told["printed"] == 0 and told["sorted"] == "ascending"
        first, down, up = ([_number(text) for text in texts] for texts in told["seen"])
        known = [v for v in first if v is not None]
        assert [v for v in up if v is not None] == sorted(known)
        assert [v for v in down if v is not None] == sorted(known, reverse=True)


def _number(text):
    """The first number of a cell; None where there is none."""
    try:
        return float(text.split()[0].rstrip("%"))
    except (ValueError, IndexError):
        return None
