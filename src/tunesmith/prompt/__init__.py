"""Conversations in, batches of tokens out: template, tokens, pack."""
