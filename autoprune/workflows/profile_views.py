"""A profile as a user sees it: tables on the listener, pictures in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoprune.budget import format_amount
from autoprune.latency.layer_work import LayerWork, ShareSource
from autoprune.latency.predictor import LatencyError
from autoprune.listener import Listener
from autoprune.report.profile import BarKind, LayerBar, PredictedNetwork, layer_bars, prediction_plot
from autoprune.report.staircase import UnitSteps, staircases
from autoprune.runtimes import RuntimeSettings
from autoprune.workflows.profile_file import Profile, cost_of_an_image

SHOWN_LAYERS, SHOWN_UNITS, SHOWN_WIDTHS = 15, 10, 12
DRAWN_LAYERS, DRAWN_UNITS = 24, 20

BUSY = 1.5
"""p90 over p10 of the dense network's times above which a user is told."""

_HOW = {
    ShareSource.ALONE: "layers measured alone, paired with the whole network",
    ShareSource.MODEL: "shares modelled from each layer's work; the whole is measured",
}


def show(profile: Profile, listener: Listener) -> None:
    """Show the tables, and how far predictions are off."""
    _show_networks(profile, listener)
    _show_layers(profile, listener)
    _show_staircases(profile, listener)
    slowest = profile.dense.p90 / profile.dense.p10
    if slowest > BUSY:
        listener.warn(
            f"The machine is busy: the dense network took {profile.dense.p10:.3f} to {profile.dense.p90:.3f} ms, so "
            "shares and steps are uncertain; profile again when it is calm."
        )
    for line in error_lines(profile):
        listener.note(f"The latency predictor is {line}.")


def draw(profile: Profile, folder: Path) -> list[Path]:
    """Draw ``layers.png``, ``staircase.png`` and ``predicted.png``; return their paths."""
    title = f"{profile.name} at {profile.image_size} px, {described(profile.settings)}"
    units = [
        UnitSteps(one.unit, one.widths, one.predicted, one.measured, one.worth)
        for one in profile.staircases[:DRAWN_UNITS]
    ]
    of = (
        f"latency by the width of one unit, all others dense (the {len(units)} of {len(profile.staircases)} units that "
        "matter most)"
    )
    networks = [PredictedNetwork(role, predicted, measured) for role, _, predicted, measured in profile.networks]
    return [
        layer_bars(_bars(profile), folder / "layers.png", title=title, note=_HOW[profile.shares.source]),
        staircases(units, folder / "staircase.png", title=f"{title}: {of}"),
        prediction_plot(networks, folder / "predicted.png", title=title, errors=error_lines(profile)),
    ]


def described(settings: RuntimeSettings) -> str:
    """Return how networks ran, as a title says it."""
    words = [f"{settings.runtime.value} on {settings.device}", settings.precision.value, f"batch {settings.batch}"]
    if settings.device == "cpu":
        words.append(f"{settings.threads} thread{'s' if settings.threads > 1 else ''}")
    if settings.with_nms:
        words.append("with NMS")
    return ", ".join(words)


def error_lines(profile: Profile) -> list[str]:
    """Return how far predictions are off, as people read it: held out, and fresh where there are any."""
    lines: list[str] = []
    if profile.prediction.error is not None:
        lines.append(_error_line(profile.prediction.error, "networks held out"))
    if profile.check is not None:
        lines.append(_error_line(profile.check, "fresh networks"))
    return lines


def _error_line(error: LatencyError, which: str) -> str:
    return (
        f"off by {error.median_abs_rel:.1%} (median; p90 {error.p90_abs_rel:.1%}, Spearman {error.spearman:.3f}, "
        f"{error.n} {which})"
    )


def _show_networks(profile: Profile, listener: Listener) -> None:
    batch = profile.settings.batch
    rows = []
    for name, timing in (("dense", profile.dense), ("narrowest (reachable minimum)", profile.narrowest)):
        costs = cost_of_an_image(timing, batch)
        rows.append(
            [
                name,
                f"{timing.median:.3f} ms",
                f"{timing.p10:.3f} – {timing.p90:.3f}",
                str(timing.runs),
                f"{timing.median / profile.dense.median:.1%}",
                f"{costs['image']:.3f} ms",
                f"{costs['images_per_second']:.1f}",
            ]
        )
    header = ["network", "latency", "p10 – p90", "runs", "of dense", "one image", "images/s"]
    listener.table(f"{profile.name} at {profile.image_size} px, {described(profile.settings)}", header, rows)


def _show_layers(profile: Profile, listener: Listener) -> None:
    ordered = profile.ordered()
    rows = [_layer_row(profile, work, share) for work, share in ordered[:SHOWN_LAYERS]]
    others = ordered[SHOWN_LAYERS:]
    if others:
        flops, traffic = (
            sum(values) for values in zip(*((work.flops, work.traffic) for work, _ in others), strict=True)
        )
        share = sum(share for _, share in others)
        name = f"{len(others)} more layers"
        rows.append([name, "", "", "", *_amounts(profile, flops, traffic, share)])
    for index, (name, share) in enumerate(profile.shares.rest.items()):
        fixed = profile.fixed_flops if index == 0 else 0.0
        rows.append([name, "", "", "", *_amounts(profile, fixed, None, share)])
    header = ["layer", "operation", "channels", "output", "FLOPs", "of all", "moved", "latency", "share"]
    listener.table(f"Where the latency goes: {_HOW[profile.shares.source]}", header, rows)
    if profile.shares.scale < 1:
        listener.note(f"Alone the layers take {1 / profile.shares.scale:.2f} × the whole; shares are scaled to it.")


def _layer_row(profile: Profile, work: LayerWork, share: float) -> list[str]:
    height, width = work.layer.out_hw
    channels = f"{work.c_in} → {work.c_out}"
    amounts = _amounts(profile, work.flops, work.traffic, share)
    return [work.layer.name, work.operation, channels, f"{height}×{width}", *amounts]


def _amounts(profile: Profile, flops: float, traffic: float | None, share: float) -> list[str]:
    return [
        format_amount("flops", flops) if flops else "",
        f"{flops / profile.flops:.1%}" if flops else "",
        format_amount("size", traffic) if traffic is not None else "",
        f"{share * profile.dense.median:.3f} ms",
        f"{share:.1%}",
    ]


def _show_staircases(profile: Profile, listener: Listener) -> None:
    rows = []
    for one in profile.staircases[:SHOWN_UNITS]:
        widths = listed_widths(one.worth) if one.free else "all"
        rows.append([one.unit, str(one.widths[-1]), f"{one.range:.3f} ms", f"{len(one.free)}", widths])
    header = ["unit", "channels", "range", "free widths", "widths worth choosing"]
    how = "predicted" if profile.shares.source is ShareSource.MODEL else "its layers measured alone"
    of = f"the {len(rows)} of {len(profile.staircases)} units that matter most"
    title = f"Latency by the width of one unit, {how}: {of}"
    listener.table(title, header, rows)


def listed_widths(widths: Sequence[int]) -> str:
    """Return widths as a column of a table has room for: the first and the last ones, where they are many."""
    words = list(map(str, widths))
    if len(words) > SHOWN_WIDTHS:
        half = SHOWN_WIDTHS // 2
        words[half:-half] = ["…"]
    return " ".join(words)


def _bars(profile: Profile) -> Sequence[LayerBar]:
    ordered = profile.ordered()
    bars = [
        LayerBar(f"{work.layer.name}  {work.operation}  {work.c_in}→{work.c_out}", share, work.flops / profile.flops)
        for work, share in ordered[:DRAWN_LAYERS]
    ]
    others = ordered[DRAWN_LAYERS:]
    if others:
        flops = sum(work.flops for work, _ in others) / profile.flops
        bars.append(LayerBar(f"{len(others)} more layers", sum(share for _, share in others), flops, BarKind.SUM))
    for index, (name, share) in enumerate(profile.shares.rest.items()):
        bars.append(LayerBar(name, share, profile.fixed_flops / profile.flops if index == 0 else 0.0, BarKind.SUM))
    return bars
