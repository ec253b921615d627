"""Packed vision tokens: many regions in one sequence, and attention within their segments."""
