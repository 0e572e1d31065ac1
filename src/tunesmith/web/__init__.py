"""Authentication, limits, error responses and server start, shared by all of tunesmith's servers."""
