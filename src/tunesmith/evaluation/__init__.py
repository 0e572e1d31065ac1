"""Text models and test rows in, scores out."""
