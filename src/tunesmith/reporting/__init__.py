"""Offline HTML pages and model cards of a run's results."""
