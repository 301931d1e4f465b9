"""Steps that every experiment begins with: rows, descriptors, weights."""
