"""Rows written by a model or from templates, following a plan of topics and styles."""
