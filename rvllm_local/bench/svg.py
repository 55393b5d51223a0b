"""Line plots as small SVG files that read well on a light and on a dark page.

Draws; knows nothing of benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_COLOURS = ("#2f6fde", "#d9822b", "#3a9d5d", "#b04fc0", "#c23b3b")
_DASHES = ("none", "6 3", "2 3")
_IN_A_ROW, _ROW = 3, 16  # names in a row of the legend, and its height
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 34, 44
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Plot:
    """Titles and size of a plot; `is_log` draws the vertical axis in powers of ten."""

    title: str
    x_title: str
    y_title: str
    is_log: bool = False
    dots: bool = True
    width: int = 640
    height: int = 320


def draw(plot: Plot, lines: Mapping[str, Sequence[Point]]) -> str:
    """The SVG of named lines; points that are not finite are left out.

    Names that begin with the same word share a colour.
    """
    series = {
        name: [point for point in points if _is_drawable(plot, point)]
        for name, points in lines.items()
    }
    points = [point for row in series.values() for point in row] or [
        (0.0, 1.0),
        (1.0, 1.0),
    ]
    axes = _Axes(plot, points, _TOP + (math.ceil(len(series) / _IN_A_ROW) - 1) * _ROW)
    words = [name.split(" ")[0] for name in series]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {plot.width} {plot.height}" '
        f'font-family="sans-serif" font-size="12" fill="#777">',
        f'<text x="{_LEFT}" y="18" font-size="14" font-weight="bold">{escape(plot.title)}</text>',
        *axes.parts(),
    ]
    for index, (name, row) in enumerate(series.items()):
        colour = _COLOURS[
            list(dict.fromkeys(words)).index(words[index]) % len(_COLOURS)
        ]
        dash = _DASHES[words[:index].count(words[index]) % len(_DASHES)]
        path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in row)
        stroke = f'stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dash}"'
        parts.append(f'<polyline points="{path}" fill="none" {stroke}/>')
        if plot.dots:
            parts += [
                f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3" fill="{colour}"/>'
                for x, y in row
            ]
        x = _LEFT + 10 + index % _IN_A_ROW * (plot.width - _LEFT - _RIGHT) // _IN_A_ROW
        y = _TOP + index // _IN_A_ROW * _ROW
        parts.append(
            f'<line x1="{x}" x2="{x + 22}" y1="{y - 6}" y2="{y - 6}" {stroke}/>'
        )
        parts.append(
            f'<text x="{x + 28}" y="{y - 2}" fill="{colour}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _is_drawable(plot: Plot, point: Point) -> bool:
    return all(map(math.isfinite, point)) and (point[1] > 0 or not plot.is_log)


class _Axes:
    """Maps values to places, and draws the grid."""

    def __init__(
        self,
        plot: Plot,
        points: Sequence[Point],
        top: int,
    ) -> None:
        self._plot, self._top = plot, top
        xs, ys = [x for x, _ in points], [y for _, y in points]
        self._x_ticks = _ticks(min(0.0, *xs), max(xs))
        self._y_ticks = (
            _powers(min(ys), max(ys)) if plot.is_log else _ticks(min(0.0, *ys), max(ys))
        )

    def x(self, value: float) -> float:
        first, last = self._x_ticks[0], self._x_ticks[-1]
        return _LEFT + (value - first) / (last - first) * (
            self._plot.width - _LEFT - _RIGHT
        )

    def y(self, value: float) -> float:
        first, last = self._y_ticks[0], self._y_ticks[-1]
        if self._plot.is_log:
            value, first, last = math.log10(value), math.log10(first), math.log10(last)
        bottom = self._plot.height - _BOTTOM
        return bottom - (value - first) / (last - first) * (bottom - self._top - 10)

    def parts(self) -> list[str]:
        plot, right, bottom = (
            self._plot,
            self._plot.width - _RIGHT,
            self._plot.height - _BOTTOM,
        )
        parts = []
        for tick in self._y_ticks:
            y = self.y(tick)
            parts.append(
                f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>'
            )
            parts.append(
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
            )
        for tick in self._x_ticks:
            parts.append(
                f'<text x="{self.x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'
            )
        middle = (_LEFT + right) / 2
        parts.append(
            f'<text x="{middle}" y="{plot.height - 8}" text-anchor="middle">{escape(plot.x_title)}</text>'
        )
        position = f'x="14" y="{(self._top + bottom) / 2}" transform="rotate(-90 14 {(self._top + bottom) / 2})"'
        parts.append(
            f'<text {position} text-anchor="middle">{escape(plot.y_title)}</text>'
        )
        return parts


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from below `low` to above `high`."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [
        float(f"{index * step:.12g}")
        for index in range(first, max(last, first + 1) + 1)
    ]


def _powers(low: float, high: float) -> list[float]:
    first = math.floor(math.log10(low))
    last = max(math.ceil(math.log10(high)), first + 1)
    return [10.0**index for index in range(first, last + 1)]
