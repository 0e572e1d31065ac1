"""Browser pages for a single user. They call the commands and keep no state outside the run's folder."""
