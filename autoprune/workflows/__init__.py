"""One file per command: each joins the parts into a run. Nothing here prints; a ``Listener`` does."""
