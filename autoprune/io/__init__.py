"""Files, and values read from files of others."""
