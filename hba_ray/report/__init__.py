"""Scores as tables and charts: an HTML page, files in other formats, and tables for the terminal."""
