"""transformers, PEFT and bitsandbytes, as TRL's SFTTrainer runs them, and the same with Liger's kernels.

`trl` is a plain loop over what SFTTrainer sets up for QLoRA: adapters in bfloat16, non-reentrant checkpointing, and
its fused head, which never holds all logits. `trl-liger` has Liger's kernels and its fused cross-entropy in place of
that head. `peft` is the network's own loss over all logits. None of the loops runs under autocast: weights, adapters
and activations are bfloat16 already.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.training.clock import CLIP, RATE

Step = Callable[[torch.Tensor], None]


def make_step(engine: str, folder: Path, *, checkpointing: bool, rank: int, device: str) -> tuple[Step, int]:
    """One whole optimizer step over token ids (batch x length, loss on every token), and the vocabulary's size."""
    network = load(engine, folder, rank=rank, device=device)
    if checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        network.enable_input_require_grads()
    loss_of = _fused_loss(network) if engine == "trl" else _own_loss(network)
    network.train()
    return whole_step(network, loss_of, device), network.config.vocab_size


def load(engine: str, folder: Path, *, rank: int, device: str) -> Any:
    """The 4-bit base with its adapters, which are in bfloat16."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    if engine == "trl-liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()  # before the network is made, as Liger asks
    options = {"dtype": torch.bfloat16, "device_map": {"": device}, **four_bits(folder)}
    base = AutoModelForCausalLM.from_pretrained(folder, **options)
    base.config.use_cache = False
    network = get_peft_model(base, LoraConfig(**lora(rank)))
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    return network


def lora(rank: int) -> dict[str, Any]:
    """The adapter's settings: every linear layer of the decoder."""
    return {"r": rank, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def four_bits(folder: Path) -> dict[str, Any]:
    """What `from_pretrained` needs to quantise a folder of plain weights; nothing for one that is quantized."""
    from transformers import BitsAndBytesConfig

    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        return {}
    made = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": made}


def whole_step(network: Any, loss_of: Callable[[torch.Tensor], torch.Tensor], device: str) -> Step:
    """Forward, backward, clip, AdamW: what a trainer does in one optimizer step of one micro-batch."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=device == "cuda")

    def step(ids: torch.Tensor) -> None:
        loss_of(ids).backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _own_loss(network: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = network(input_ids=ids, labels=ids, use_cache=False).loss
        return loss

    return loss_of


def _fused_loss(network: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """TRL's head with the three values that SFTTrainer asks it for at every step."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(network.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        out = network(input_ids=ids, labels=ids, use_cache=False, fused_lm_head=True)
        loss: torch.Tensor = -out.log_probs.sum() / out.label_mask.sum()
        return loss

    return loss_of
