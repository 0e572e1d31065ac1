"""Conversations in, replies out."""
