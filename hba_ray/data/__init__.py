"""The rows of an atlas: how they are read, ordered, shown to a model as micro-batches, and named in predictions."""
