"""What the adapters of detectors share: labelled data sets, accuracy, suppression, exported files."""
