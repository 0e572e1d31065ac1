"""Chat templates, tokenization with a loss mask, and packing: conversations in, batches of tokens out."""
