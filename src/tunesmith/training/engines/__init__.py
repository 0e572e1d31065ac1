"""Training loops. Each module defines `train(job)` and writes the same products."""
