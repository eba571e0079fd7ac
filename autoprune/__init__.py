"""autoprune: compress a trained YOLO to a FLOPs or measured latency budget."""

__version__ = "0.1.0"
