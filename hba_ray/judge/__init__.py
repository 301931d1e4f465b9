"""A language model that grades open answers."""
