"""Runs as tables: comparison, columns, layouts, formats. No torch here."""
