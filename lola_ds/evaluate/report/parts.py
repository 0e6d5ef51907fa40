"""The tables and pictures of a page."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

__all__ = ["Row", "number_table", "picture", "text_table", "video"]


@dataclass(frozen=True)
class Row:
    """One row of numbers.

    Arguments:
        name: what the numbers are of.
        values: one per column; None or not finite where there is none.
        baseline: drawn softly, and never the best.
    """

    name: str
    values: Sequence[float | None]
    baseline: bool = False


def number_table(
    caption: str,
    first: str,
    columns: Sequence[str],
    rows: Sequence[Row],
    best: str | Sequence[str] = "low",
) -> str:
    """A table that sorts by any column, the best of each column in bold.

    Arguments:
        caption: what the numbers are.
        first: heading of the rows' names.
        columns: headings of the numbers.
        rows: the rows; those that are baselines compete for nothing.
        best: `low`, `high`, `one` (nearest to 1) or `none`, for all columns or each.
    """
    kinds = [best] * len(columns) if isinstance(best, str) else list(best)
    winners = [_winner(rows, column, kind) for column, kind in enumerate(kinds)]
    head = "".join(
        f'<th scope="col"><button type="button">{escape(c)}</button></th>'
        for c in [first, *columns]
    )
    body = []
    for row in rows:
        cells = [f'<th scope="row">{escape(row.name)}</th>']
        for value, winner in zip(row.values, winners):
            bold = not row.baseline and winner is not None and _shown(value) == winner
            kind = ' class="best"' if bold else ""
            exact = repr(value) if value is not None and math.isfinite(value) else ""
            if value is not None and math.isinf(value):
                exact = "1e308"
            cells.append(f'<td{kind} data-value="{exact}">{_shown(value)}</td>')
        kind = ' class="baseline"' if row.baseline else ""
        body.append(f"<tr{kind}>{''.join(cells)}</tr>")
    table = (
        f'<table class="sortable"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )
    return _wide(table, caption)


def text_table(caption: str, columns: Sequence[str], rows: Sequence[tuple[str, list[Any]]]) -> str:
    """A table of words; values that are None are left empty."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{'' if x is None else escape(str(x))}</td>" for x in values)
        + "</tr>"
        for name, values in rows
    )
    table = (
        f'<table class="text"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
    return _wide(table, caption)


def picture(path: Path, caption: str) -> str:
    """A picture, held in the page itself."""
    text = escape(caption, quote=True)
    return (
        f'<figure><img alt="{text}" src="{_data(path)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def video(path: Path, caption: str) -> str:
    """An MP4 with controls, held in the page itself."""
    text = escape(caption, quote=True)
    return (
        f'<figure><video controls loop muted playsinline preload="auto" aria-label="{text}" '
        f'src="{_data(path)}"></video><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _wide(table: str, label: str) -> str:
    """A table that scrolls sideways by itself, with the keyboard too."""
    text = escape(label, quote=True)
    return f'<div class="wide" role="region" tabindex="0" aria-label="{text}">{table}</div>'


def _winner(rows: Sequence[Row], column: int, kind: str) -> str | None:
    """The best value of a column as it is shown, so that equals share the honour."""
    values = [row.values[column] for row in rows if not row.baseline]
    known = [x for x in values if x is not None and math.isfinite(x)]
    if kind == "none" or len(known) < 2:
        return None
    worst = {"low": lambda x: x, "high": lambda x: -x, "one": lambda x: abs(x - 1)}[kind]
    return _shown(min(known, key=worst))


def _shown(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if value else "0"


def _data(path: Path) -> str:
    kind = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
