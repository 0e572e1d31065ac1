"""Turns a recipe into a form, filters and checks what a model writes for it, and repairs and exports the text."""
