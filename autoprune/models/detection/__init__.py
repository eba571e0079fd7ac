"""Shared by adapters of detectors: labelled data sets, accuracy, suppression, exported files."""
