"""Steps that look at what the stages have made."""
