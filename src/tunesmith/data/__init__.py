"""Rows in, conversations out: sources, formats, checks, split."""
