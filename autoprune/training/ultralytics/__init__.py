"""Ultralytics' training, of the network that it is given."""
