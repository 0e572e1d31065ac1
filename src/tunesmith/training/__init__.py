"""Batches and a model in, an adapter out."""
