"""From an allocation to its score: slice, compensate, recalibrate, score."""
