"""Panels as SVG that stands in a page: colours are its style's variables, so that a dark page has its own."""

from collections.abc import Iterator
from html import escape

from fedjax_rai.runs.palette import COLOURS, marker
from fedjax_rai.studies.panels import Bar, Panel, Point, Series

WIDTH = 380  # of a phone's page: text is as large as the page's there, and several stand beside each other elsewhere
RIGHT, TOP, BELOW = 14.0, 8.0, 40.0
ROW, HEIGHT = 26.0, 240.0
LETTER = 6.1  # the width of a letter of 11 pixels
LONGEST = 22  # letters of a name on an axis; a longer one is cut, and whole in its note


class Frame:
    """Where the points of a panel lie in its picture."""

    def __init__(self, panel: Panel):
        is_rows = not panel.y.label
        names = [text for _, text in panel.y.ticks]
        longest = max((len(_cut(name)) for name in names), default=0)
        self.left = 12 + LETTER * longest + (0 if is_rows else 18)
        self.inner = ROW * max(len(names), 2) if is_rows else HEIGHT
        self.height = TOP + self.inner + BELOW
        self.width = WIDTH - self.left - RIGHT
        self._panel = panel

    def x(self, value: float) -> float:
        return self.left + self.width * self._panel.x.place(value)

    def y(self, value: float) -> float:
        return TOP + self.inner * (1 - self._panel.y.place(value))


def draw(panel: Panel) -> str:
    """The picture as an `<svg>`; its title is read out."""
    frame = Frame(panel)
    size = f'viewBox="0 0 {WIDTH} {frame.height:g}" width="{WIDTH}"'
    parts = [f'<svg class="picture" role="img" {size} aria-label="{escape(panel.title)}">']
    parts += _grid(panel, frame)
    for bar in panel.bars:
        parts.append(_bar(bar, frame))
    for series in panel.series:
        parts += _series(series, frame)
    return "".join([*parts, "</svg>"])


def _grid(panel: Panel, frame: Frame) -> Iterator[str]:
    bottom, right = TOP + frame.inner, frame.left + frame.width
    for value, text in panel.x.ticks:
        x = frame.x(value)
        yield _line((x, TOP), (x, bottom), "grid") + _text((x, bottom + 14), text, "middle")
    for value, text in panel.y.ticks:
        y = frame.y(value)
        if panel.y.label:
            yield _line((frame.left, y), (right, y), "grid")
        shown = _cut(text)
        whole = f"<title>{escape(text)}</title>" if shown != text else ""
        yield _text((frame.left - 6, y + 4), shown, "end", whole)
    yield _text((frame.left + frame.width / 2, bottom + 32), panel.x.label, "middle")
    if panel.y.label:
        place = f'transform="translate(11 {TOP + frame.inner / 2:g}) rotate(-90)" text-anchor="middle"'
        yield f"<text {place}>{escape(panel.y.label)}</text>"
    if panel.rule is not None:
        x = frame.x(panel.rule)
        yield _line((x, TOP), (x, bottom), "rule")
    if panel.diagonal:
        yield _line((frame.left, bottom), (right, TOP), "rule")


def _series(series: Series, frame: Frame) -> Iterator[str]:
    look = series.look % len(COLOURS)
    yield f'<g class="s{look}">'
    if series.line:
        places = " ".join(f"{frame.x(point.x):.1f},{frame.y(point.y):.1f}" for point in series.points)
        yield f'<polyline points="{places}"/>'
    if series.dots:
        for point in series.points:
            yield from _point(point, frame, marker(series.look), series.name)
    yield "</g>"


def _point(point: Point, frame: Frame, shape: str, name: str) -> Iterator[str]:
    x, y = frame.x(point.x), frame.y(point.y)
    yield f"<g><title>{escape(point.note or name)}</title>"
    if point.x_range:
        yield _line((frame.x(point.x_range[0]), y), (frame.x(point.x_range[1]), y), "interval")
    if point.y_range:
        yield _line((x, frame.y(point.y_range[0])), (x, frame.y(point.y_range[1])), "interval")
    yield _mark(x, y, shape) + "</g>"


def _bar(bar: Bar, frame: Frame) -> str:
    begin, end = frame.x(bar.start), frame.x(bar.end)
    place = f'x="{begin:.1f}" y="{frame.y(bar.y) - 7:.1f}" width="{max(end - begin, 0):.1f}" height="14"'
    return f'<g class="s{bar.look % len(COLOURS)}"><rect {place}><title>{escape(bar.note)}</title></rect></g>'


SHAPES = {
    "s": "M-4 -4H4V4H-4Z",
    "D": "M0 -5L5 0L0 5L-5 0Z",
    "^": "M0 -5L5 4H-5Z",
    "v": "M0 5L5 -4H-5Z",
    "P": "M-1.5 -5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5V-1.5H-1.5Z",
    "X": "M-5 -3L-3 -5L0 -2L3 -5L5 -3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0Z",
}
"""matplotlib's markers as paths around 0; the first of the palette, `o`, is a circle."""


def _mark(x: float, y: float, shape: str) -> str:
    if shape not in SHAPES:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    return f'<path transform="translate({x:.1f} {y:.1f})" d="{SHAPES[shape]}"/>'


def swatch(look: int, of_bars: bool = False) -> str:
    """The marker of a legend; of bars a square."""
    mark = _mark(7.0, 7.0, "s" if of_bars else marker(look))
    return (
        f'<svg class="swatch" width="14" height="14" aria-hidden="true"><g class="s{look % len(COLOURS)}">'
        f"{mark}</g></svg>"
    )


def _line(begin: tuple[float, float], end: tuple[float, float], kind: str) -> str:
    places = f'x1="{begin[0]:.1f}" y1="{begin[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"'
    return f'<line class="{kind}" {places}/>'


def _text(place: tuple[float, float], text: str, anchor: str, inside: str = "") -> str:
    return f'<text x="{place[0]:.1f}" y="{place[1]:.1f}" text-anchor="{anchor}">{inside}{escape(text)}</text>'


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
