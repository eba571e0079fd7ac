"""The HTML of a page: Jinja's template filled in, Vega's JavaScript inside, nothing loaded from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from autoprune import __version__
from autoprune.io.files import read_bytes, write_atomic
from autoprune.report.chart import DARK, THEME, Chart, vega_lite_version
from autoprune.report.detections import Gallery
from autoprune.report.page.runs import Report
from autoprune.report.sections import Shown
from autoprune.report.table import Table
from autoprune.report.together import overview
from autoprune.results import Detection

_MADE = '<meta name="generator" content="autoprune'

_HEADINGS = {
    "comparison": "Everything compared",
    "progress": "The searches",
    "correlation": "Score and accuracy",
    "channels": "Channels kept",
    "layers": "Latency by block",
    "staircase": "Latency by width",
    "predicted": "Predicted and measured latency",
    "curves": "Sensitivity of each unit",
    "heatmap": "Sensitivity of all units",
}
"""Of charts that have the title of their whole report, by their names."""

_BEGINNINGS = {
    "compare": "Compared at equal cost",
    "profile": "Dense and narrowest",
    "export": "In torch and exported",
    "quantize": "In float and in int8",
}
"""Of the table of networks, by command; the others' shows what was before and after."""

_CLASSES = 6  # colours of boxes


def page(reports: Sequence[Report]) -> str:
    """Return the HTML of one or several reports.

    Args:
        reports: at least one; several are also compared with one another, first of all.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"kind": _kind, "colour": _colours(reports), "rectangle": _rectangle}
    environment.filters |= {"heading": _heading, "unbroken": _unbroken}
    template = environment.from_string(_file("page.html"))
    together = overview([(report.name, report.result) for report in reports]) if len(reports) > 1 else []
    charts = {f"o-{one.name}": _spec(one) for one in together if isinstance(one, Chart)}
    for place, report in enumerate(reports):
        charts |= {f"r{place}-{one.name}": _spec(one) for one in report.sections if isinstance(one, Chart)}
    return template.render(
        reports=reports,
        title=_title(reports),
        together=together,
        charts=_script(charts),
        themes=_script({"light": _look(THEME), "dark": _look(DARK)}),
        style=_file("page.css"),
        script=_file("page.js"),
        library=_library() if charts else "",
        version=__version__,
    )


def write_page(reports: Sequence[Report], path: Path) -> Path:
    """Write the HTML of reports whole or not at all.

    Raises:
        RunError: the file cannot be written.
    """
    write_atomic(path, page(reports))
    return path


def is_page(path: Path) -> bool:
    """Return whether a file is a page of ours, which a newer one may replace."""
    try:
        return _MADE.encode() in read_bytes(path)
    except OSError:
        return False


def _title(reports: Sequence[Report]) -> str:
    if len(reports) == 1:
        return reports[0].result.title
    runs = {report.run for report in reports}
    return f"{len(reports)} budgets" if len(runs) == 1 else f"{len(runs)} runs"


def _file(name: str) -> str:
    return (files("autoprune.report.page") / name).read_text(encoding="utf-8")


@cache
def _library() -> str:
    """Return Vega, Vega-Lite and vega-embed as one script, safe within an HTML element."""
    import vl_convert

    bundle = vl_convert.javascript_bundle(vl_version=vega_lite_version())  # type: ignore[call-arg]  # its stub demands a snippet
    return str(bundle).replace("</script", "<\\/script")


def _spec(chart: Chart) -> dict[str, Any]:
    return {**chart.spec(), "usermeta": {"embedOptions": {"actions": False}}}


def _look(theme: Any) -> dict[str, Any]:
    """Return a theme for charts that lie on the page's own background."""
    return {**theme, "background": "transparent", "padding": 2}


def _script(values: Any) -> str:
    """Return values as JSON that may stand in a script element: names of layers and classes come from others' files."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _kind(section: Table | Chart | Gallery) -> str:
    return type(section).__name__.lower()


def _colours(reports: Sequence[Report]) -> Any:
    """Return a function that gives every class of the galleries the number of its colour."""
    labels: dict[str, int] = {}
    for report in reports:
        for gallery in (one for one in report.sections if isinstance(one, Gallery)):
            for image in gallery.images:
                for mark in (*image.truth, *(mark for marks in image.found.values() for mark in marks)):
                    labels.setdefault(mark.label, len(labels) % _CLASSES)
    return labels.__getitem__


def _heading(section: Shown, report: Report) -> str:
    """Return the title of a section without that of the whole report, which stands above it."""
    left = section.title.removeprefix(report.result.title).lstrip(": ,")
    if left.partition(" ")[0].islower():  # else its first word is a name, such as mAP50
        left = left[:1].upper() + left[1:]
    beginning = _BEGINNINGS.get(report.result.command, "Before and after")
    return left or _HEADINGS.get(getattr(section, "name", ""), beginning)


def _unbroken(cell: str) -> str:
    """Return the text of a cell with its numbers held together with their units."""
    return re.sub(r"(?<=\d) (?=[A-Za-zµ])", "\u00a0", cell)


def _rectangle(mark: Detection) -> dict[str, float]:
    left, top, right, bottom = mark.box
    return {"x": left, "y": top, "width": max(right - left, 0.0), "height": max(bottom - top, 0.0)}
