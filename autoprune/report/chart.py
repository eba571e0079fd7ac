"""A chart: one Vega-Lite specification that becomes a PNG file as well as an interactive chart of a page.

Altair writes and checks the specification, vl-convert draws it without a browser. Altair takes half a second to
import: whoever draws imports it within the function.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.io.files import write_atomic
from autoprune.report.table import Picture

if TYPE_CHECKING:
    import altair as alt
    from altair.typing import ChartType

BLUE, ORANGE, GREEN, PURPLE, GOLD, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
"""Colours that differ for readers with any colour vision (Okabe and Ito, "Color Universal Design", 2008)."""

_FONT = "Liberation Sans, DejaVu Sans, Arial, Helvetica, sans-serif"  # vl-convert brings the first one
_CHARACTER = 0.53  # mean width of a character, in font sizes
_TITLE, _CAPTION, _TEXT, _SMALL = 15, 12, 12, 11  # pixels
_AXIS = 48  # pixels that the labels of an axis take at least
_SCALE = 2  # pixels of a PNG per pixel of a page


def _theme(*, paper: str, ink: str, muted: str, faint: str, main: str, series: list[str]) -> Mapping[str, Any]:
    """Return the Vega-Lite config of one look; marks name a colour of it through their `style`."""
    words = {"labelColor": ink, "titleColor": ink, "labelFontSize": _SMALL, "titleFontSize": _TEXT}
    return {
        "background": paper,
        "font": _FONT,
        "padding": 12,
        "title": {
            "anchor": "start",
            "frame": "bounds",
            "offset": 14,
            "color": ink,
            "fontSize": _TITLE,
            "subtitleColor": muted,
            "subtitleFontSize": _CAPTION,
            "subtitlePadding": 5,
        },
        "axis": {
            **words,
            "titleFontWeight": "normal",
            "domainColor": muted,
            "tickColor": muted,
            "gridColor": faint,
            "labelLimit": 400,
            "titleLimit": 900,
        },
        "legend": {**words, "titleFontWeight": "normal", "labelLimit": 400, "symbolStrokeWidth": 2},
        "header": {**words, "titleFontWeight": "normal", "labelLimit": 400},
        "view": {"stroke": None},
        "range": {"category": series},
        "rule": {"color": muted},
        "text": {"color": ink, "fontSize": _SMALL},
        "bar": {"color": main},
        "line": {"color": main},
        "point": {"color": main, "filled": True, "opacity": 1},
        "tick": {"color": main, "opacity": 1},
        "style": {
            "main": {"color": main},
            "ink": {"color": ink},
            "muted": {"color": muted},
            "faint": {"color": faint},
            "hollow": {"fill": paper},
            "accent": {"color": series[1]},
            "segment": {"color": main, "stroke": paper, "strokeWidth": 1},
        },
    }


THEME = _theme(
    paper="#FFFFFF",
    ink="#222222",
    muted="#6E6E6E",
    faint="#DCDCDC",
    main=BLUE,
    series=[BLUE, ORANGE, GREEN, PURPLE, GOLD, SKY, "#222222"],
)
"""The Vega-Lite config of PNG files and light pages: colours, fonts and sizes; no text is smaller than 11 pixels."""

DARK = _theme(
    paper="#16191D",
    ink="#E8E8E8",
    muted="#A0A0A0",
    faint="#3A3F45",
    main=SKY,
    series=[SKY, "#F0863A", "#2CC295", PURPLE, GOLD, "#3C9BD6", "#E8E8E8"],
)
"""The same for dark pages."""


@dataclass(frozen=True)
class Chart:
    """A chart, for a file and for a page.

    Attributes:
        name: stem of its PNG file, and its anchor in a page.
        title: plain text that stands above it.
        figure: what is drawn, without theme, background or title.
        caption: one sentence that says how to read it.

    Example:
        >>> import altair as alt
        >>> figure = alt.Chart(values([{"x": 1, "y": 2}])).mark_point().encode(x="x:Q", y="y:Q").properties(width=300)
        >>> Chart("dots", "Dots", figure).spec()["width"]
        'container'
    """

    name: str
    title: str
    figure: ChartType
    caption: str = ""

    def spec(self) -> dict[str, Any]:
        """Return Vega-Lite's JSON for a page, the data within it; as wide as its container unless it has panels."""
        found = self._bare()
        if isinstance(found.get("width"), int | float):
            found["width"] = "container"
        return found

    def png(self, folder: Path) -> Picture:
        """Write ``<folder>/<name>.png`` in the light look; the same input gives the same bytes.

        Args:
            folder: must exist.

        Raises:
            RunError: the file cannot be written; an old one is untouched.
        """
        import vl_convert

        found = self._bare()
        title = {"text": _lines(self.title, _width(found), _TITLE)}
        if self.caption:
            title["subtitle"] = _lines(self.caption, _width(found), _CAPTION)
        content = vl_convert.vegalite_to_png(
            found | {"title": title},
            vl_version=vega_lite_version(),
            config=dict(THEME),
            scale=_SCALE,
            allowed_base_urls=[],
        )
        path = folder / f"{self.name}.png"
        write_atomic(path, content)
        return Picture(path)

    def _bare(self) -> dict[str, Any]:
        found = self.figure.to_dict()
        found.pop("config", None)
        return found


def vega_lite_version() -> str:
    """Return the version of Vega-Lite that Altair writes, as vl-convert takes it, e.g. ``6.1``."""
    import altair as alt

    return str(alt.SCHEMA_VERSION.removeprefix("v").rsplit(".", 1)[0])


def values(rows: Iterable[Mapping[str, object]]) -> alt.InlineData:
    """Return rows as data of a chart; a number that is not finite becomes null, which JSON has."""
    import altair as alt

    return alt.InlineData(values=[{name: _plain(value) for name, value in row.items()} for row in rows])


def names_axis(limit: int) -> alt.Axis:
    """Return the axis of rows that have names, of which those longer than ``limit`` characters are shortened."""
    import altair as alt

    return alt.Axis(labelExpr=short_labels(limit), labelPadding=6, domain=False, ticks=False, grid=False)


def short_labels(limit: int) -> str:
    """Return the `labelExpr` of an axis that leaves out the middle of long names, for layers differ at both ends."""
    head, tail = limit - 1 - limit // 2, limit // 2
    cut = f"slice(datum.label, 0, {head}) + '…' + slice(datum.label, -{tail})"
    return f"length(datum.label) > {limit} ? {cut} : datum.label"


def shortened(name: str, limit: int) -> str:
    """Return a name of at most ``limit`` characters; what is left out of its middle becomes an ellipsis."""
    return name if len(name) <= limit else f"{name[: limit - 1 - limit // 2]}…{name[-(limit // 2) :]}"


def _plain(value: object) -> object:
    return None if isinstance(value, float) and value - value != 0 else value


def _width(spec: Mapping[str, Any]) -> float:
    """Return the width of a specification's plots in pixels, without their axes and legends."""
    if "hconcat" in spec:
        return sum(map(_width, spec["hconcat"]))
    if "facet" in spec:
        return _width(spec["spec"]) * float(spec.get("columns", 1))
    return float(spec.get("width", 0)) or max(map(_width, spec.get("layer", ())), default=0.0)


def _lines(text: str, width: float, size: int) -> list[str]:
    """Return a text broken into lines that are about as wide as the plots and an axis, each of a readable length."""
    return textwrap.wrap(text, max(48, int((width + _AXIS) / (_CHARACTER * size)))) or [""]
