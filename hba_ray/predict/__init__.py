"""Predictions of a trained model or of a baseline, by heads or by generation."""
