"""The parts of a page: tables, charts, pictures. Templates turn them into HTML."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lola_ds.evaluate.plots.charts import Curve, layout_chart

__all__ = [
    "TEMPLATES",
    "Row",
    "details",
    "line_chart",
    "media",
    "number_table",
    "text_table",
]

TEMPLATES = Environment(
    loader=PackageLoader("lola_ds.evaluate.report", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TYPES = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4"}
_DISTANCES: dict[str, Callable[[float], float]] = {
    "low": lambda x: x,
    "high": lambda x: -x,
    "one": lambda x: abs(x - 1),
}


@dataclass(frozen=True)
class Row:
    """A row of a table of numbers.

    Arguments:
        name: The heading of the row.
        values: A number per column; None or not finite if there is none.
        baseline: Whether the row is that of a baseline, which is never marked as the best.
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
) -> Markup:
    """Renders a table that sorts by any column, with the best of each column in bold.

    Arguments:
        caption: The caption.
        first: The heading of the column of names.
        columns: The headings of the other columns.
        rows: The rows.
        best: The best value of all columns or of each: `low`, `high`, `one` (nearest to 1) or
            `none`.
    """
    kinds = [best] * len(columns) if isinstance(best, str) else best
    winners = [_winner(rows, column, kind) for column, kind in enumerate(kinds)]
    table = [
        {
            "name": row.name,
            "baseline": row.baseline,
            "cells": [
                {
                    "best": not row.baseline and winner is not None and _text(value) == winner,
                    "exact": _sort_key(value),
                    "text": _text(value),
                }
                for value, winner in zip(row.values, winners)
            ],
        }
        for row in rows
    ]
    return _render("number_table", caption, [first, *columns], table)


def text_table(
    caption: str, columns: Sequence[str], rows: Iterable[tuple[str, list[Any]]]
) -> Markup:
    """Renders a table of words, in which None is an empty cell."""
    return _render("text_table", caption, columns, rows)


def line_chart(
    title: str, curves: Sequence[Curve], xlabel: str, ylabel: str, log_y: bool = False
) -> Markup:
    """Renders a chart with its legend, or a sentence if there is nothing to draw.

    Arguments:
        title: The title, which screen readers read out too.
        curves: The curves.
        xlabel: The label of the horizontal axis.
        ylabel: The label of the vertical axis.
        log_y: Whether the vertical axis is logarithmic.
    """
    chart = layout_chart(title, curves, xlabel, ylabel, log_y)
    if chart is None:
        return Markup("<p>{}: nothing to draw.</p>").format(title)
    return _render("line_chart", chart)


def media(path: Path, caption: str) -> Markup:
    """Renders a picture or a video, which the page contains."""
    content = base64.b64encode(path.read_bytes()).decode()
    source = f"data:{_TYPES[path.suffix]};base64,{content}"
    return _render("media", source, caption, path.suffix == ".mp4")


def details(summary: str, content: Markup, opened: bool = False) -> Markup:
    """Renders content that opens at a click on its summary."""
    return _render("details", summary, content, opened)


def _render(macro: str, *values: Any) -> Markup:
    return getattr(TEMPLATES.get_template("parts.html.j2").module, macro)(*values)


def _winner(rows: Sequence[Row], column: int, kind: str) -> str | None:
    """The best value of a column as it is shown, so that ties are all marked."""
    values = [row.values[column] for row in rows if not row.baseline]
    known = [x for x in values if x is not None and math.isfinite(x)]
    if kind == "none" or len(known) < 2:
        return None
    return _text(min(known, key=_DISTANCES[kind]))


def _sort_key(value: float | None) -> str:
    """A number with all its digits, of which JavaScript reads 1e308 but not `inf`."""
    if value is None or math.isnan(value):
        return ""
    return repr(value) if math.isfinite(value) else "1e308"


def _text(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if value else "0"
