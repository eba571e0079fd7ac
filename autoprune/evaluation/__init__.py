"""Score an allocation: slice, compensate, recalibrate, score."""
