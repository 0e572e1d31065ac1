"""What every server of tunesmith shares: authentication, limits, error responses, start and stop."""
