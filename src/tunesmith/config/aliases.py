"""Names that other trainers use for our settings, and their values in our form.

One table serves the hint for an unknown key, the hint for an unknown option of the command line (`--epochs 3`), and
`tunesmith import`. The names are those of PEFT, transformers and TRL, Unsloth, Axolotl and LLaMA-Factory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Alias:
    """Other names of the setting `key`, and how a value of theirs becomes ours.

    `key` is None where nothing corresponds; `note` then says what tunesmith does instead. `convert` raises ValueError
    for a value that has no counterpart.
    """

    names: tuple[str, ...]
    key: str | None
    note: str = ""
    convert: Callable[[Any], Any] = lambda value: value


def _chosen(choices: Mapping[Any, Any]) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        word = value.lower() if isinstance(value, str) else value
        if word not in choices:
            raise ValueError(f"{value!r} has no counterpart")
        return choices[word]

    return convert


def _layers(value: Any) -> Any:
    if value in (True, "all", "all-linear", "all_linear"):
        return "all"
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{value!r} has no counterpart")
    return [name.rpartition(".")[2] for name in names]


def _whole(value: Any) -> int:
    if float(value) != int(value):
        raise ValueError(f"{value!r} is not a whole number")
    return int(value)


def _modules(value: Any) -> list[str]:
    our_names = {"embed_tokens": "embeddings", "wte": "embeddings", "lm_head": "head"}
    names = value.split(",") if isinstance(value, str) else value or []
    unknown = [name for name in names if name.strip() not in our_names]
    if unknown:
        raise ValueError(f"only embed_tokens and lm_head can be trained whole, not {', '.join(unknown)}")
    return sorted({our_names[name.strip()] for name in names})


_OPTIMIZERS = _chosen(
    {
        "adamw": "adamw", "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw",
        "adamw_8bit": "adamw_8bit", "adamw_bnb_8bit": "adamw_8bit", "paged_adamw_8bit": "paged_adamw_8bit",
    }
)  # fmt: skip
_SCHEDULES = _chosen({name: name for name in ("cosine", "linear", "constant")} | {"constant_with_warmup": "constant"})
_DTYPES = _chosen(
    {name: name for name in ("auto", "float32", "bfloat16", "float16")}
    | {"torch.float32": "float32", "torch.bfloat16": "bfloat16", "torch.float16": "float16"}
    | {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", None: "auto"}
)
_BATCH = "It counts the rows of one optimizer step: rows per GPU × accumulation steps × GPUs, such as '8 rows'"

ALIASES = (
    Alias(
        ("base_model", "model_name_or_path", "model_name", "model_id", "pretrained_model_name_or_path"), "base.model"
    ),
    Alias(("load_in_4bit", "use_4bit"), "base.bits", "4 is NF4, 16 keeps the weights", _chosen({True: 4, False: 16})),
    Alias(
        ("quantization_bit", "bits"), "base.bits", "4 is NF4, 16 keeps the weights", _chosen({4: 4, 16: 16, None: 16})
    ),
    Alias(("model_revision",), "base.revision"),
    Alias(
        ("datasets", "dataset_name", "dataset_path", "train_file", "dataset", "data_path", "train_data"), "data.source"
    ),
    Alias(("val_set_size", "val_size", "validation_split", "eval_size"), "data.split.valid"),
    Alias(("test_size",), "data.split.test"),
    Alias(
        ("max_seq_length", "max_length", "sequence_len", "cutoff_len", "model_max_length", "max_seq_len", "seq_len"),
        "prompt.max_tokens",
        "Longer rows are left out and counted, never cut",
    ),
    Alias(("chat_template", "chat_template_jinja", "prompt_template"), "prompt.template", "'model', or a .jinja file"),
    Alias(("system_prompt", "default_system", "system_message"), "prompt.system"),
    Alias(
        ("train_on_inputs", "train_on_prompt"),
        "prompt.learn",
        "answer: loss on answers only; everything: on all tokens",
        _chosen({True: "everything", False: "answer"}),
    ),
    Alias(
        ("train_on_responses_only", "completion_only_loss", "assistant_only_loss", "mask_prompt"),
        "prompt.learn",
        "answer: loss on answers only; everything: on all tokens",
        _chosen({True: "answer", False: "everything", None: "answer"}),
    ),
    Alias(("r", "lora_r", "lora_rank", "lora_dim"), "adapter.rank"),
    Alias(("lora_alpha",), "adapter.alpha"),
    Alias(
        ("target_modules", "lora_target", "lora_target_modules", "lora_target_linear"),
        "adapter.layers",
        "'all', or the last names of layers such as [q_proj, v_proj]",
        _layers,
    ),
    Alias(("lora_dropout",), "adapter.dropout"),
    Alias(("use_rslora", "peft_use_rslora", "rslora"), "adapter.scaling", "", _chosen({True: "rs", False: "standard"})),
    Alias(("use_dora", "peft_use_dora"), "adapter.dora"),
    Alias(
        ("modules_to_save", "lora_modules_to_save", "additional_target"),
        "adapter.train_also",
        "Its names are embeddings and head",
        _modules,
    ),
    Alias(
        ("init_lora_weights", "peft_init_lora_weights"),
        "adapter.start",
        "zero, pissa or loftq",
        _chosen({True: "zero", "gaussian": "zero", "pissa": "pissa", "loftq": "loftq", "pissa_niter_16": "pissa"}),
    ),
    Alias(("loraplus_lr_ratio",), "adapter.rate_ratio"),
    Alias(
        ("lora_bias",),
        "adapter.bias",
        "",
        _chosen({"none": "none", "lora_only": "lora_only", "all": "all", False: "none"}),
    ),
    Alias(("num_train_epochs", "num_epochs", "n_epochs", "max_epochs", "epoch"), "train.epochs", "", _whole),
    Alias(
        ("per_device_train_batch_size", "micro_batch_size", "batch_size", "train_batch_size", "global_batch_size"),
        "train.batch",
        _BATCH,
        lambda value: f"{value} rows",
    ),
    Alias(
        ("gradient_accumulation_steps", "grad_accumulation_steps", "gradient_accumulation"),
        "train.batch",
        f"{_BATCH}. Micro-batches are chosen so that they fit the memory",
        lambda value: f"{value} rows",
    ),
    Alias(("lr", "learning_rate", "max_lr", "peak_lr"), "train.learning_rate"),
    Alias(("weight_decay",), "train.weight_decay"),
    Alias(
        ("lr_scheduler_type", "lr_scheduler", "scheduler"), "train.schedule", "cosine, linear or constant", _SCHEDULES
    ),
    Alias(
        ("warmup_ratio", "warmup_steps", "num_warmup_steps", "lr_warmup_steps"),
        "train.warmup",
        "Below 1 a share of the steps",
    ),
    Alias(
        ("optim", "optimizer", "optimizer_type", "optimizer_name"),
        "train.optimizer",
        "adamw, adamw_8bit or paged_adamw_8bit",
        _OPTIMIZERS,
    ),
    Alias(("max_grad_norm", "gradient_clipping", "grad_clip", "clip_grad_norm"), "train.clip"),
    Alias(("eval_steps", "evaluation_steps", "eval_interval"), "train.evaluate_every"),
    Alias(("save_steps", "checkpoint_interval", "checkpointing_steps"), "train.checkpoint_every"),
    Alias(("save_total_limit", "keep_checkpoints"), "train.keep"),
    Alias(("early_stopping_patience",), "train.patience"),
    Alias(
        ("bf16", "bfloat16"),
        "train.precision",
        "auto picks what the machine computes fast",
        _chosen({True: "bfloat16", False: "auto", "auto": "auto", "true": "bfloat16", "false": "auto"}),
    ),
    Alias(
        ("fp16", "float16", "half"),
        "train.precision",
        "auto picks what the machine computes fast",
        _chosen({True: "float16", False: "auto", "auto": "auto", "true": "float16", "false": "auto"}),
    ),
    Alias(("torch_dtype", "dtype", "bnb_4bit_compute_dtype", "compute_dtype"), "train.precision", "", _DTYPES),
    Alias(
        ("gradient_checkpointing", "use_gradient_checkpointing", "activation_checkpointing"),
        "train.recompute",
        "auto, yes or no; auto recomputes only where memory is short",
        _chosen({True: "yes", False: "no", "unsloth": "auto", "true": "yes", "offload": "auto"}),
    ),
    Alias(("max_memory", "max_memory_mb"), "train.memory", "A budget such as 6GB"),
    Alias(
        ("fsdp", "fsdp_config", "deepspeed"),
        "train.parallel",
        "auto, ddp or fsdp; GPUs are given as --gpus N",
        lambda value: "auto",
    ),
    Alias(("seed", "random_state", "random_seed", "data_seed"), "seed"),
    Alias(("max_new_tokens",), "evaluate.max_new_tokens"),
    # --- without a counterpart ---
    Alias(("load_in_8bit",), None, "the base is NF4 (base.bits: 4) or as it is (base.bits: 16)"),
    Alias(("max_steps",), None, "training ends after train.epochs; data.sample.train draws fewer rows"),
    Alias(
        ("packing", "sample_packing", "eval_sample_packing", "pad_to_sequence_len", "group_by_length", "neat_packing"),
        None,
        "rows are always packed without attention across them",
    ),
    Alias(("logging_steps", "log_interval", "logging_strategy"), None, "every step is logged"),
    Alias(("output_dir", "save_dir", "overwrite_output_dir"), None, "a run's folder is its recipe's name below --runs"),
    Alias(("resume_from_checkpoint", "auto_resume_from_checkpoints"), None, "the same command resumes by itself"),
    Alias(
        ("attn_implementation", "flash_attention", "flash_attn", "sdp_attention", "xformers_attention"),
        None,
        "attention is chosen for the machine",
    ),
    Alias(
        ("report_to", "wandb_project", "wandb_entity", "use_wandb", "run_name"),
        None,
        "TensorBoard files are written to the run",
    ),
    Alias(
        ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "double_quantization"),
        None,
        "4 bits are NF4 with double quantization",
    ),
    Alias(("neftune_noise_alpha",), None, "noise on embeddings is not offered"),
    Alias(("push_to_hub", "hub_model_id", "hub_strategy"), None, "`tunesmith push` sends the export target hub"),
    Alias(("trust_remote_code",), None, "a model's own code is never run"),
    Alias(
        (
            "strict",
            "plot_loss",
            "special_tokens",
            "local_rank",
            "debug",
            "preprocessing_num_workers",
            "dataloader_num_workers",
            "ddp_timeout",
            "eval_strategy",
            "evaluation_strategy",
            "save_strategy",
            "per_device_eval_batch_size",
            "dataset_prepared_path",
            "overwrite_cache",
            "evals_per_epoch",
            "saves_per_epoch",
            "use_cache",
            "device_map",
            "remove_unused_columns",
            "dataset_num_proc",
            "tokenizer_type",
            "model_type",
            "task_type",
            "do_train",
        ),
        None,
        "",
    ),
)
_BY_NAME = {name: alias for alias in ALIASES for name in alias.names}


def find_alias(name: str) -> Alias | None:
    """The entry of another tool's `name`, written with hyphens or underscores in any case; None if there is none."""
    return _BY_NAME.get(name.strip("-").replace("-", "_").lower())


def advice(name: str, value: Any = None) -> str | None:
    """What to write instead of another tool's `name`, with its `value` in our form; None for an unknown name."""
    alias = find_alias(name)
    if alias is None:
        return None
    if alias.key is None:
        return f"Leave it out: {alias.note or 'nothing corresponds'}"
    text = converted_text(alias, value)
    return ". ".join(filter(None, (f"Its name here is {alias.key}" + (f": {text}" if text else ""), alias.note)))


def converted_text(alias: Alias, value: Any) -> str:
    """`value` in our form, as a recipe has it; '' for no value, and for one without a counterpart."""
    if value is None:
        return ""
    try:
        converted = alias.convert(value)
    except (ValueError, TypeError, AttributeError):
        return ""
    return f"[{', '.join(map(str, converted))}]" if isinstance(converted, list) else str(converted)
