"""Texts and fields in, checked facts out: which statements of a text its fields support, contradict or do not know."""
