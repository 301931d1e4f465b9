"""Descriptors of behaviour: pose, prosody and words of a clip, extracted, stored and read as vectors (paper section 3.4).

Extractors run in Python environments of their own, so this file imports nothing.
"""
