"""Curve charts as SVG inside a page: sharp at any size, in the page's colours, light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Curve", "line_chart"]

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 44
COLOURS = 8  # variables --c0 … of the page's style


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Arguments:
        label: its name in the legend.
        x, y: its points; those that are not finite, or not positive on a logarithmic axis, are
            left out.
        colour: number of its colour.
        dashed: whether it is a baseline.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    dashed: bool = False


def line_chart(
    title: str, lines: Sequence[Curve], xlabel: str, ylabel: str, log_y: bool = False
) -> str:
    """A chart with its legend, as HTML; a sentence instead where there is nothing to draw.

    Arguments:
        title: says what is drawn, for screen readers too.
        lines: what is drawn.
        xlabel, ylabel: names of the axes.
        log_y: whether y is logarithmic.
    """
    points = [(line, _points(line, log_y)) for line in lines]
    drawn = [(line, found) for line, found in points if found]
    if not drawn:
        return f"<p>{escape(title)}: nothing to draw.</p>"
    x_scale = _Scale([x for _, found in drawn for x, _ in found], LEFT, WIDTH - RIGHT, False)
    y_scale = _Scale([y for _, found in drawn for _, y in found], HEIGHT - BOTTOM, TOP, log_y)
    body = [_axes(x_scale, y_scale, xlabel, ylabel)]
    for line, found in drawn:
        path = " ".join(f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in found)
        body.append(f'<polyline class="line" {_stroke(line)} points="{path}"/>')
        if len(found) <= 60:
            body.extend(_dot(line, x, y, x_scale(x), y_scale(y)) for x, y in found)
    legend = "".join(_legend(line) for line, _ in drawn)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, True)}">'
        f'{"".join(body)}</svg><ul class="legend">{legend}</ul></figure>'
    )


class _Scale:
    """Values to pixels, with the ticks."""

    def __init__(self, values: Sequence[float], low: float, high: float, log: bool) -> None:
        self.log, self.low, self.high = log, low, high
        first, last = min(values), max(values)
        if log:
            self.first, self.last = math.log10(first), math.log10(last)
            if self.last - self.first < 0.3:
                middle = (self.first + self.last) / 2
                self.first, self.last = middle - 0.15, middle + 0.15
        else:
            self.first, self.last = min(first, 0.0), last if last > min(first, 0.0) else first + 1
        self.ticks = _log_ticks(self.first, self.last) if log else _ticks(self.first, self.last)

    def __call__(self, value: float) -> float:
        position = math.log10(value) if self.log else value
        share = (position - self.first) / (self.last - self.first)
        return self.low + share * (self.high - self.low)


def _stroke(line: Curve) -> str:
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    return f'stroke="var(--c{line.colour % COLOURS})"{dash}'


def _legend(line: Curve) -> str:
    sample = f'<line x2="24" y1="4" y2="4" {_stroke(line)}/>'
    sample = f'<svg viewBox="0 0 24 8" aria-hidden="true">{sample}</svg>'
    return f"<li>{sample}{escape(line.label)}</li>"


def _points(line: Curve, log: bool) -> list[tuple[float, float]]:
    pairs = zip(line.x, line.y)
    return [
        (x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log)
    ]


def _ticks(first: float, last: float) -> list[float]:
    """Round numbers, about five."""
    step = 10 ** math.floor(math.log10((last - first) / 4))
    step *= next(k for k in (1, 2, 5, 10) if (last - first) / (k * step) <= 6)
    count = range(math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9) + 1)
    return [k * step for k in count]


def _log_ticks(first: float, last: float) -> list[float]:
    """1, 2 and 5 times powers of ten; powers alone where they are many."""
    digits = (1, 2, 5) if last - first < 2.5 else (1,)
    if last - first < 0.6:
        digits = (1, 1.5, 2, 3, 4, 5, 6, 8)
    every = [
        digit * 10.0**power
        for power in range(math.floor(first), math.ceil(last) + 1)
        for digit in digits
    ]
    return [x for x in every if first - 1e-9 <= math.log10(x) <= last + 1e-9]


def _axes(x_scale: _Scale, y_scale: _Scale, xlabel: str, ylabel: str) -> str:
    parts = []
    for tick in y_scale.ticks:
        y = y_scale(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for tick in x_scale.ticks:
        place = f'x="{x_scale(tick):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle"'
        parts.append(f"<text {place}>{tick:g}</text>")
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(xlabel)}</text>"
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(ylabel)}</text>"
    )
    return "".join(parts)


def _dot(line: Curve, x: float, y: float, left: float, top: float) -> str:
    return (
        f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3" fill="var(--c{line.colour % COLOURS})">'
        f"<title>{escape(line.label)}: {y:.4g} at {x:g}</title></circle>"
    )
