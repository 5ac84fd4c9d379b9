"""Recipes: YAML files, what they may say, and checks that need neither data nor torch."""
