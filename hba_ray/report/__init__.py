"""Scores as tables: Markdown and JSON files, and a table for the terminal."""
