"""What a notebook shows of a result: a sentence, a small table, and what is to be doubted."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def as_html(
    sentence: str,
    head: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    notes: Sequence[str] = (),
) -> str:
    """A piece of HTML for `_repr_html_`, all text escaped, without a style sheet of its own."""
    parts = [f"<p><b>{escape(sentence)}</b></p>"]
    if rows:
        body = "".join(_row("td", row) for row in rows)
        parts.append(f"<table><thead>{_row('th', head)}</thead><tbody>{body}</tbody></table>")
    if notes:
        parts.append(f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>")
    return "".join(parts)


def percent(share: float) -> str:
    """A share as per cent with one decimal."""
    return f"{100 * share:.1f}"


def _row(cell: str, texts: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{cell}>{escape(text)}</{cell}>' for text in texts)}</tr>"
