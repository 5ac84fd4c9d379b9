"""A benchmark suite for a vision class: one recipe, one number, on any machine."""

__version__ = "0.1.0"
