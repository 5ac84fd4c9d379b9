"""The commands that look at recipes, not at runs."""
