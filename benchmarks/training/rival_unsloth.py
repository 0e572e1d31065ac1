"""Unsloth's FastLanguageModel in a plain loop: its kernels, its fused loss, its checkpointing or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.training.rival_trl import Step, lora, whole_step

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_step(folder: Path, *, checkpointing: str, rank: int, longest: int) -> tuple[Step, int]:
    """One whole optimizer step over token ids (batch x length, loss on every token), and the vocabulary's size."""
    network, _ = load(folder, checkpointing=checkpointing, rank=rank, longest=longest)
    network.train()

    def loss_of(ids: Any) -> Any:
        return network(input_ids=ids, labels=ids, use_cache=False).loss

    return whole_step(network, loss_of, "cuda"), network.config.vocab_size


def load(folder: Path, *, checkpointing: str, rank: int, longest: int) -> tuple[Any, Any]:
    """The 4-bit base with its adapters, and the tokenizer. Import it before transformers, PEFT and TRL."""
    import unsloth  # noqa: F401  (it must come first)
    from unsloth import FastLanguageModel

    wanted = {"unsloth": "unsloth", "yes": True, "no": False}[checkpointing]
    network, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(folder),
        max_seq_length=longest,
        load_in_4bit=True,
        use_gradient_checkpointing=wanted,
        use_exact_model_name=True,
    )
    network = FastLanguageModel.get_peft_model(
        network,
        use_gradient_checkpointing=wanted,
        max_seq_length=longest,
        **{**{key: value for key, value in lora(rank).items() if key != "task_type"}, "target_modules": LAYERS},
    )
    return network, tokenizer
