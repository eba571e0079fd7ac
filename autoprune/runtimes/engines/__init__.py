"""Engines of the worker process: one file per runtime, each with a class ``Engine`` (see ``worker.py``).

The files import the standard library, numpy and their runtime, and nothing of autoprune: the process must start quickly
and hold one runtime only. Methods of an engine take and return plain JSON values.
"""
