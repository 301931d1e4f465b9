"""Behaviour as vectors: what moves, what is heard and what is said in a clip (paper section 3.4).

Extractors run in environments of their own, so nothing is imported here.
"""
