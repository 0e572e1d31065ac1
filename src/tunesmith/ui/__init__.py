"""Pages for one person's browser. They call verbs and hold no logic; a run's folder is the only state."""
