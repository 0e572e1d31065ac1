"""What writes the docs from the code."""
