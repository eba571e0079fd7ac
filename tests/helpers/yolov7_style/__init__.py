"""Stands in for a user's repository: a network in YOLOv7's style, written for these tests.

Its files are copied into a folder as ``models``, whose classes a checkpoint then names (``models.yolo.Model``).
"""
