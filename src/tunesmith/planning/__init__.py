"""Memory and time of a training before anything is loaded, and the recipe drafted for a table and a machine."""
