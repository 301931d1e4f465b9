"""The corpora that can be converted: one module each, of the name of its source."""
