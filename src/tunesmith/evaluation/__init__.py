"""Scores, statistics and reviews of models on held-out rows."""
