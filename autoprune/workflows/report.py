"""``autoprune report``: a page of one or several finished runs."""

from __future__ import annotations

from pathlib import Path

from autoprune.config import ReportConfig
from autoprune.errors import AutopruneError, RunError
from autoprune.listener import Listener
from autoprune.report.page import PAGE, is_page, reports_of, write_page
from autoprune.workflows.call import Caller, Finished


def run(config: ReportConfig, listener: Listener, caller: Caller) -> Finished:
    """Write the page; nothing is measured or computed anew.

    Raises:
        RunError: a folder holds no finished run, or a damaged one, or the file cannot be written.
    """
    folders = list(dict.fromkeys(map(Path, config.runs)))
    path = config.page or (folders[0] if len(folders) == 1 else Path()) / PAGE
    if path.exists() and not is_page(path):
        raise RunError(f"{path} exists and is no report of autoprune; choose another `page`")
    reports = [report for folder in folders for report in reports_of(folder)]
    try:
        written = write_page(reports, path)
    except AutopruneError:
        raise
    except Exception as error:  # what commands alone know, their figures, may be anything in a file of others
        raise RunError(
            f"No report can be made of {', '.join(dict.fromkeys(map(str, folders)))}: results there are not what "
            f"autoprune writes ({type(error).__name__}: {error}); run the command again"
        ) from error
    listener.note(f"The report is {written}.")
    return Finished(path.parent)
