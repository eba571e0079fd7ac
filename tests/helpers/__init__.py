"""What several tests use: networks, data sets, fakes, problems with a known optimum."""
