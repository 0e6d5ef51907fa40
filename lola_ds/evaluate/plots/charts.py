"""Line charts inside a page: their geometry, which a template draws as SVG.

SVG is sharp at any size and follows the light and dark colours of the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import LogLocator, MaxNLocator

__all__ = ["Chart", "Curve", "layout_chart"]

WIDTH, HEIGHT = 640, 300
FRAME = LEFT, RIGHT, TOP, BOTTOM = 62, 628, 12, 256


@dataclass(frozen=True)
class Curve:
    """A curve of a chart.

    Arguments:
        label: The label in the legend.
        x: The abscissas.
        y: The ordinates. Points that are not finite, or not positive on a logarithmic axis, are
            left out.
        colour: The number of the colour; the page has eight, --c0 to --c7, which repeat.
        dashed: Whether the curve is dashed, as those of baselines are.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart in pixels: curves with points (left, top, text), and ticks (text, position)."""

    title: str
    xlabel: str
    ylabel: str
    curves: list[tuple[Curve, list[tuple[str, str, str]]]]
    x_ticks: list[tuple[str, float]]
    y_ticks: list[tuple[str, float]]
    width: int = WIDTH
    height: int = HEIGHT
    frame: tuple[int, int, int, int] = FRAME


def layout_chart(
    title: str, curves: Sequence[Curve], xlabel: str, ylabel: str, log_y: bool = False
) -> Chart | None:
    """Lays out a chart, see `report.parts.line_chart`; returns None without anything to draw."""
    drawn = [(curve, points) for curve in curves if (points := _points(curve, log_y))]
    if not drawn:
        return None
    x_axis = _Axis([x for _, points in drawn for x, _ in points], LEFT, RIGHT, False)
    y_axis = _Axis([y for _, points in drawn for _, y in points], BOTTOM, TOP, log_y)
    placed = [
        (curve, [(f"{x_axis(x):.1f}", f"{y_axis(y):.1f}", f"{y:.4g} at {x:g}") for x, y in points])
        for curve, points in drawn
    ]
    return Chart(title, xlabel, ylabel, placed, x_axis.ticks(), y_axis.ticks())


class _Axis:
    """The map from values to pixels, linear from 0 or logarithmic over at least 0.3 decades."""

    def __init__(self, values: Sequence[float], start: float, stop: float, log: bool) -> None:
        self.start, self.stop, self.log = start, stop, log
        low, high = min(values), max(values)
        if log:
            low, high = math.log10(low), math.log10(high)
            middle, half = (low + high) / 2, max(0.15, (high - low) / 2)
            self.low, self.high = middle - half, middle + half
        else:
            self.low = min(low, 0.0)
            self.high = high if high > self.low else low + 1

    def __call__(self, value: float) -> float:
        share = ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[tuple[str, float]]:
        """Labels and positions of ticks at round numbers."""
        if self.log:
            decades = self.high - self.low
            digits = (1,) if decades >= 2.5 else (1, 2, 5)
            digits = (1, 1.5, 2, 3, 4, 5, 6, 8) if decades < 0.6 else digits
            locator = LogLocator(subs=digits, numticks=1000)
            values = locator.tick_values(10**self.low, 10**self.high)
        else:
            values = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(self.low, self.high)
        places = [(f"{value:g}", round(self(value), 1)) for value in values]
        first, last = sorted((self.start, self.stop))
        return [(label, place) for label, place in places if first <= place <= last]


def _points(curve: Curve, log: bool) -> list[tuple[float, float]]:
    """The points that can be drawn."""
    pairs = zip(curve.x, curve.y)
    return [
        (x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log)
    ]
