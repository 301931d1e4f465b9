"""Steps that train: the stages of a spec."""
