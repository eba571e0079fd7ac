"""What results are shown as: tables and charts; `autoprune.report.sections` is their registry.

Whoever draws takes plain values and returns a `Chart`; Altair is imported when the first one is made.
"""

from __future__ import annotations

from autoprune.report.chart import Chart
from autoprune.report.table import WIDTH, Picture, Table

__all__ = ["WIDTH", "Chart", "Picture", "Table"]
