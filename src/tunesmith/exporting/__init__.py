"""Exports an adapter as files for other runtimes."""
