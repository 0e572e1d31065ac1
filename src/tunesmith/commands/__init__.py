"""One module per command. Each takes a recipe or a run, writes its products into the run folder and returns a value."""
