"""Pages and a small interface for one person's browser on this machine."""
