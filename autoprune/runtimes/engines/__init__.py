"""What the worker process loads: one file per runtime, each with a class ``Engine`` (see ``worker.py``).

The files import the standard library, numpy and their runtime, and nothing of autoprune: the process must start quickly
and hold one runtime only. Its other requirement is that an engine answers in plain JSON values.
"""
