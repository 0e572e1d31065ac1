"""Recipes: the schema of all settings, reading from YAML, and the registry that resolves names."""
