"""What results are shown as: tables, and pictures as PNG files; `autoprune.report.sections` is their registry.

Whoever draws takes small frozen values, draws one picture and returns its path: nothing there knows how the numbers
came about, and matplotlib is imported when the first picture is drawn.
"""

from __future__ import annotations

from autoprune.report.table import WIDTH, Picture, Table

__all__ = ["WIDTH", "Picture", "Table"]
