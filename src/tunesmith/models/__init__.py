"""Weights in, a trainable model out: weights, shape, qlora, adapter, build."""
