"""Recipes: from YAML layers to a checked recipe."""
