"""Recipes: the schema of every setting, reading from YAML, and the registry that resolves names."""
