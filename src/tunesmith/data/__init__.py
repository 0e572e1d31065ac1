"""Reads rows into conversations: sources, formats, checks, privacy, split, synthesis."""
