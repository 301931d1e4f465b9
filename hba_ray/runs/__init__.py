"""From a spec to its steps, and through them to a finished experiment."""
