"""Everything measured, as offline pages."""
