"""What stays of a run: folders of runs and steps, files and their digests, the journal and MLflow, and where a result comes from.

Importing this package is cheap; pyarrow and mlflow are imported when something is read or recorded.
"""
