"""Base models and adapters: loading, 4-bit weights, LoRA, the fused decoder, and GGUF files."""
