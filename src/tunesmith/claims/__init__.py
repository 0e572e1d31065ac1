"""Extracts the claims of a text and checks each against the fields that the text was written from."""
