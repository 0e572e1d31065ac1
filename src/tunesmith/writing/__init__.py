"""Fields in, checked text out: the form of a recipe, the gate that a model's words pass, mending, documents."""
