"""``report.html``: one file with everything that one or several runs found, which opens offline."""

from autoprune.report.page.html import is_page, page, write_page
from autoprune.report.page.runs import PAGE, Report, reports_of

__all__ = ["PAGE", "Report", "is_page", "page", "reports_of", "write_page"]
