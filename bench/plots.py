"""Plots of a run as SVG, readable on a light and on a dark page: ratios beside their goals, and growth."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bench.document import Run
from bench.report import AXES

COLOURS = ("#2f9e74", "#3b82d0", "#d9822b", "#a05fc4", "#c94f4f", "#7a8a99")
_STYLE = """<style>
text { font: 12px sans-serif; fill: #24292f } .small { font-size: 10px } .head { font-size: 13px; font-weight: bold }
.title { font-size: 15px; font-weight: bold }
.grid { stroke: #8884; fill: none } .axis { stroke: #888; fill: none } .goal { stroke: #24292f; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .goal { stroke: #e6edf3 } }
</style>"""
_LEFT, _WIDTH, _BAR = 290, 460, 16


@dataclass(frozen=True, slots=True)
class Scale:
    """A logarithmic scale, ``low`` to ``high``, over pixels ``start`` to ``end``; what lies outside is at an end."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Return the pixel of a value."""
        value = min(max(value, self.low), self.high)
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + part * (self.end - self.start)


def write_all(run: Run, path: Path) -> None:
    """Write ``NAME.svg``, and ``NAME-AXIS.svg`` of each growth that was measured."""
    for name, text in draw_all(run, path.stem).items():
        (path.parent / name).write_text(text)


def draw_all(run: Run, stem: str) -> dict[str, str]:
    """Return the plots by the name of their file."""
    plots = {f"{stem}.svg": draw_ratios(run)}
    return plots | {f"{stem}-{axis}.svg": draw_growth(run, axis) for axis in AXES if run.results.growth.get(axis)}


def draw_ratios(run: Run) -> str:
    """Draw each figure's ratio to the peer as a bar, beside a mark for its goal; other peers have bars without one."""
    figures = [figure for figure in run.figures() if figure.goals and not figure.absolute]
    names = [*run.ours(), *run.peers()[1:]]
    rows = [(figure, name) for figure in figures for name in names]
    scale = Scale(0.01, 3, _LEFT, _LEFT + _WIDTH)
    height = 112 + _BAR * len(rows) + 8 * len(figures)
    parts = [_text(20, 18, f"Medians, as a ratio to {run.peer}: below 1 is less time, memory or CPU", "start", "title")]
    colours = dict(zip(run.endpoints, COLOURS, strict=False))
    parts += _key({name: colours[name] for name in names}, _LEFT, 42)
    parts.append(f'<path class="goal" d="M{_LEFT + 5} 51v{_BAR - 1}"/>')
    parts.append(_text(_LEFT + 15, 62, "goal", "start"))
    parts.append(_text(_LEFT - 30, 86, f"ratio to {run.peer}", "end"))
    for tick in (0.01, 0.03, 0.1, 0.3, 1, 3):
        x = scale.place(tick)
        parts.append(f'<path class="{"axis" if tick == 1 else "grid"}" d="M{x:.1f} 92V{height - 8}"/>')
        parts.append(_text(x, 86, f"{tick:g}", "middle"))
    for number, (figure, name) in enumerate(rows):
        group, place = divmod(number, len(names))
        y = 100 + _BAR * number + 8 * group
        if place == 0:
            parts.append(_text(_LEFT - 10, y + 12, figure.label, "end"))
        verdict = run.verdict(figure.key, name)
        if verdict is None:
            parts.append(_text(_LEFT + 4, y + 12, "gap", "start", "small"))
            continue
        end = scale.place(verdict.value)
        parts.append(f'<path fill="{colours[name]}" d="M{_LEFT} {y}H{max(end, _LEFT + 1):.1f}v{_BAR - 3}H{_LEFT}z"/>')
        if verdict.goal is not None:
            x = scale.place(verdict.goal)
            parts.append(f'<path class="goal" d="M{x:.1f} {y - 1}v{_BAR - 1}"/>')
            end = max(end, x)
        told = f"{verdict.value:.2g}" + ("" if verdict.met else ", goal not met")
        parts.append(_text(end + 5, y + 11, told, "start", "small"))
    return _svg(_LEFT + _WIDTH + 110, height, parts)


def draw_growth(run: Run, axis: str) -> str:
    """Draw a panel a figure: medians of each endpoint by number, both scales logarithmic."""
    figures = run.grown(axis)
    top = 58
    parts = [_text(20, 18, f"Medians by the number of {AXES[axis]}; both scales are logarithmic", "start", "title")]
    parts += _key(dict(zip(run.endpoints, COLOURS, strict=False)), 20, 42)
    for number, (figure, name) in enumerate(figures):
        row, column = divmod(number, 3)
        curves = {endpoint: run.growth(axis, figure.key, endpoint) for endpoint in run.endpoints}
        parts += _panel(name, curves, (20 + 320 * column, top + 210 * row))
    height = top + 210 * -(-len(figures) // 3)
    parts.append(_text(480, height + 10, f"across: number of {AXES[axis]}", "middle"))
    return _svg(970, height + 20, parts)


def _panel(title: str, curves: Mapping[str, Mapping[int, float]], corner: tuple[int, int]) -> Iterator[str]:
    left, top = corner[0] + 46, corner[1] + 34
    values = [value for curve in curves.values() for value in curve.values() if value > 0]
    numbers = sorted({number for curve in curves.values() for number in curve})
    yield from _title(title, corner)
    if not values or len(numbers) < 2:
        return
    low, high = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values) * 1.0001))
    low = max(low, high / 1e5)
    across, down = Scale(numbers[0], numbers[-1], left, left + 250), Scale(low, high, top + 140, top)
    yield f'<path class="axis" d="M{left} {top}V{top + 140}H{left + 250}"/>'
    for exponent in range(round(math.log10(low)), round(math.log10(high)) + 1):
        y = down.place(10.0**exponent)
        yield f'<path class="grid" d="M{left} {y:.1f}h250"/>'
        yield _text(left - 4, y + 4, f"{10.0**exponent:g}", "end", "small")
    for number in numbers:
        yield _text(across.place(number), top + 153, str(number), "middle", "small")
    for colour, curve in zip(COLOURS, curves.values(), strict=False):
        points = " ".join(f"{across.place(number):.1f},{down.place(value):.1f}" for number, value in curve.items())
        yield f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'


def _title(title: str, corner: tuple[int, int]) -> Iterator[str]:
    """Write a title on two lines where it is long."""
    words, lines = title.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 44 and len(lines) < 2:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    for number, line in enumerate(lines):
        yield _text(corner[0] + 10, corner[1] + 12 + 14 * number, line, "start")


def _key(colours: Mapping[str, str], left: float, y: float) -> Iterator[str]:
    for number, (name, colour) in enumerate(colours.items()):
        x = left + 175 * number
        yield f'<path fill="{colour}" d="M{x} {y - 9}h10v10h-10z"/>'
        yield _text(x + 15, y, name, "start", "head")


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    return "\n".join([head, _STYLE, *parts, "</svg>"]) + "\n"
