"""Scores as tables and figures: an HTML page, files in other forms, and a table for the terminal."""
