"""Tensors in, tensors out: forward and backward of a decoder's parts, written by hand; no module, no autograd."""
