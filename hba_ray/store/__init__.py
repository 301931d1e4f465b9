"""What a run stands on: a Ray session, a record of it, its provenance, a progress bar.

Importing this package is cheap; ray and mlflow are imported when a session or a tracker is opened.
"""
