"""Segmentation track: datasets, networks, task, refiners."""
