"""How the text of a spec becomes plain values: files, YAML, words of the command line, interpolations and secrets."""
