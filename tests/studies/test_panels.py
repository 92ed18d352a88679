"""Axes to scale, and where a picture puts what."""

import re
from typing import Any

import pytest

from fedjax_rai.runs.palette import COLOURS, MARKERS, ON_DARK
from fedjax_rai.studies import plots, svg
from fedjax_rai.studies.panels import Bar, Panel, Point, Series, named_axis, number_axis, percent_axis
from fedjax_rai.studies.plots import draw_panel
from fedjax_rai.studies.svg import HEIGHT, TOP


def ticks(axis) -> list[float]:
    return [value for value, _ in axis.ticks]


@pytest.mark.parametrize(
    ("values", "low", "high", "label"),
    [
        ([12.0, 88.0], 0, 100, "percent"),
        ([91.5, 92.0, 99.9], 80, 100, "percent (from 80 to 100)"),
        ([0.0, 0.4], 0, 20, "percent (from 0 to 20)"),
        ([41.0, 42.0], 40, 60, "percent (from 40 to 60)"),
        ([55.0, 98.0], 50, 100, "percent (from 50 to 100)"),
        ([], 0, 100, "percent"),
    ],
)
def test_percentages_are_cut_to_what_intervals_need_and_never_below_twenty_points(values, low, high, label):
    axis = percent_axis("percent", values)
    assert (axis.low, axis.high, axis.label) == (low, high, label)
    assert ticks(axis)[0] == low and ticks(axis)[-1] == high


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([0.0, 2.0, 10.0], {}, [0, 2, 4, 6, 8, 10]),
        ([3.0, 4.0], {"zero": True}, [0, 1, 2, 3, 4]),
        ([0.0, 0.5], {"least_span": 20.0}, [-10, -5, 0, 5, 10, 15]),
        ([-30.0, 10.0], {}, [-30, -20, -10, 0, 10]),
        ([5.0], {"zero": True}, [0, 1, 2, 3, 4, 5]),
        ([], {}, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_numbers_get_round_ticks_that_hold_them(values, options, expected):
    axis = number_axis("n", values, **options)
    assert ticks(axis) == pytest.approx(expected) and axis.low == ticks(axis)[0] and axis.high == ticks(axis)[-1]


def test_a_place_is_to_scale():
    axis = number_axis("iterations", [0.0, 10.0, 100.0])
    assert [axis.place(value) for value in (0.0, 10.0, 100.0)] == pytest.approx([0.0, 0.1, 1.0])
    rows = named_axis(["first", "last"])
    assert rows.place(1.0) > rows.place(0.0) and rows.ticks == [(1.0, "first"), (0.0, "last")]


def test_a_picture_puts_dots_and_intervals_where_they_belong():
    point = Point(10.0, 25.0, y_range=(20.0, 40.0), note="<a> & b")
    panel = Panel("p", number_axis("x", [0.0, 20.0]), percent_axis("y", [0.0, 100.0]), [Series("s", [point], 0)])
    drawn = svg.draw(panel)
    frame = svg.Frame(panel)
    x, y = frame.left + frame.width / 2, TOP + 0.75 * HEIGHT
    assert f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>' in drawn
    low, high = TOP + 0.8 * HEIGHT, TOP + 0.6 * HEIGHT
    assert f'<line class="interval" x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}"/>' in drawn
    assert "<title>&lt;a&gt; &amp; b</title>" in drawn


def test_bars_are_as_long_as_what_they_stand_for():
    names = ["one"]
    bars = [Bar(0.0, 0.0, 10.0, 0), Bar(0.0, 10.0, 40.0, 1)]
    panel = Panel("p", number_axis("seconds", [40.0], zero=True), named_axis(names), bars=bars)
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', svg.draw(panel))]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.2)
    assert sum(widths) == pytest.approx(svg.Frame(panel).width, abs=0.3)


def test_every_colour_has_a_marker_and_one_for_a_dark_ground():
    assert len(COLOURS) == len(MARKERS) == len(ON_DARK) == len({*COLOURS}) == len({*ON_DARK})
    looks = {svg.swatch(i) for i in range(len(COLOURS))}
    assert len(looks) == len(COLOURS)


def test_a_name_that_is_too_long_is_cut_and_whole_in_its_note():
    long = "fl+filter+cai, lora.rank=16, and more"
    drawn = svg.draw(Panel("p", number_axis("x", [1.0]), named_axis([long, "short"])))
    assert f"<title>{long}</title>" in drawn and f">{long}<" not in drawn.replace(f"<title>{long}</title>", "")


def test_a_panels_name_is_one_for_files():
    axis = number_axis("x", [1.0])
    assert Panel("harmless (rule) against HHH", axis, axis).name == "harmless-rule-against-hhh"


@pytest.mark.parametrize(("synthetic", "title"), [(True, "p\nsynthetic tiny world"), (False, "p")])
def test_a_panel_is_drawn_as_a_png_too(tmp_path, monkeypatch, synthetic, title):
    """Which stands by itself, so that it says itself where numbers are the tiny world's."""
    made: list[Any] = []
    new = plots.new_figure
    monkeypatch.setattr(plots, "new_figure", lambda *size: made.append(new(*size)) or made[-1])
    point = Point(10.0, 25.0, (5.0, 15.0), (20.0, 40.0))
    axes = number_axis("x", [0.0, 20.0]), percent_axis("y", [0.0, 100.0])
    panel = Panel("p", *axes, [Series("s", [point], 0, line=True)], [Bar(50.0, 0.0, 10.0, 1)], [("s", 0)], 5.0, True)
    draw_panel(tmp_path / "p.png", panel, synthetic)
    assert made[0].axes[0].get_title() == title
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
