"""TRL's SFTTrainer with PEFT, over the same frozen base, rows, order and start, writing the same products."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from tunesmith.errors import Paused, RecipeError, RunError, TrainingDiverged
from tunesmith.find import find
from tunesmith.model.adapter import named, peft_config
from tunesmith.model.build import begin, check_wishes, wanted
from tunesmith.model.original import Original
from tunesmith.model.qlora import FrozenLinear
from tunesmith.model.shape import check_trained
from tunesmith.prompt import pack
from tunesmith.prompt.tokens import Example
from tunesmith.run import write_atomic
from tunesmith.train.groups import groups
from tunesmith.train.job import Job, Outcome
from tunesmith.train.journal import Journal, opened
from tunesmith.train.rate import warm_steps
from tunesmith.train.stop import Wish, listening

OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def train(job: Job) -> Outcome:
    """Fine-tunes and returns the best adapter.

    Raises RecipeError for settings that SFTTrainer has no equal of, Paused on Ctrl-C.
    """
    rows, micro = _batch(job)
    names = wanted(job.model.frozen(), job.adapter.layers)
    configs = _checked(job, names)
    network, starts = _wrap(job, names)
    order = [
        row
        for epoch in range(job.settings.epochs)
        for step in pack.steps([len(example) for example in job.train], job.settings.batch, job.seed, epoch)
        for row in step
    ]
    total = math.ceil(len(order) / rows)
    folder = job.folder / "checkpoints"
    last = _resumable(folder, job.fingerprint)
    step = int(last.name.rsplit("-", 1)[1]) if last else 0
    with opened(job.folder / "journal.jsonl", job.folder / "tensorboard", job.watcher, from_step=step) as journal:
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        counted = check_trained(job.model.architecture, job.adapter, trained)
        about = {"total": total, "epochs": job.settings.epochs, "rows": len(job.train), "trained": trained}
        journal.tell("resume" if step else "start", step, **about)
        with listening() as wish, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scribe = _Scribe(journal, job, total, wish)
            trainer = _trainer(job, network, order, rows, micro, total, scribe, folder)
            if not step and job.valid:
                trainer.evaluate()
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        if scribe.paused:
            raise Paused(
                f"stopped after step {trainer.state.global_step} of {total}; everything is kept",
                where=str(job.folder),
                next="Give the same command again to go on",
            )
        tensors = named(get_peft_model_state_dict(network, save_embedding_layers=False))
        outside = job.model.architecture.outside
        tensors = {outside(name): tensor for name, tensor in _undone(tensors, starts).items()}
        return Outcome(tensors, configs[bool(starts)], _summary(job, trainer, journal), counted)


def _batch(job: Job) -> tuple[int, int]:
    size, unit = job.settings.batch.split()
    if unit != "rows":
        raise RecipeError("engine trl counts a batch in rows", where="train.batch", next="Write it as '8 rows'")
    rows = int(size)
    longest = max(map(len, job.train))
    fits = max(1, job.micro_tokens // longest)
    micro = max(count for count in range(1, min(rows, fits) + 1) if rows % count == 0)
    return rows, micro


def _checked(job: Job, names: list[str]) -> tuple[dict[str, object], dict[str, object]]:
    """The configurations to be written, of `peft_config`, plain and doubled; made before PEFT replaces modules.

    Raises RecipeError for what PEFT cannot do over our base, ModelError for what the model has not.
    """
    adapter, also = job.adapter, _whole(job)
    if job.model.experts():
        raise RecipeError("engine trl trains no mixture of experts", where="train.engine", next="Set it to native")
    check_wishes(job.model, names, also, adapter.bias)
    if adapter.dora:
        _refuse_packed(job.model.frozen().values(), "adapter.dora", "dora")
    plain, doubled = (
        peft_config(
            job.model, rank=adapter.rank, alpha=adapter.alpha, dropout=adapter.dropout, names=names,
            rs=adapter.scaling == "rs", dora=adapter.dora, train_also=also, bias=adapter.bias, doubled=twice,
        )
        for twice in (False, True)
    )  # fmt: skip
    return plain, doubled


def _whole(job: Job) -> list[str]:
    return [which for which in ("embeddings", "head") if which in job.adapter.train_also]


def _refuse_packed(layers: Iterable[FrozenLinear], where: str, what: str) -> None:
    if any(layer.state is not None for layer in layers):
        raise RecipeError(
            f"engine trl cannot do {what} over NF4, for PEFT would read the packed codes as the weight",
            where=where,
            next="Set train.engine to native, or base.bits to 16",
        )


def _wrap(job: Job, names: list[str]) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
    """PEFT's network, its adapter where ours would start; and the starts that were taken off the base, by layer."""
    adapter, model = job.adapter, job.model
    outer = [model.outer(which).rsplit(".", 1)[-1] for which in _whole(job)]
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=names,
        use_rslora=adapter.scaling == "rs",
        use_dora=adapter.dora,
        bias=adapter.bias,
        modules_to_save=outer or None,
        ensure_weight_tying=bool(outer) and model.tied,
        task_type="CAUSAL_LM",
    )
    original = Original(model.weights, model.architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers for a name that is going away
        network = get_peft_model(model.network, config)
    starts = {}
    with torch.no_grad():
        if outer or adapter.bias != "none":
            _widen(network)
        for name in names:
            layer = network.base_model.model.get_submodule(name)
            if taken := _begin(job, name, layer, original):
                starts[name] = taken
    return network, starts


def _widen(network: Any) -> None:
    """Makes float32 of biases and what is trained whole, which PEFT leaves in 16 bits, where small steps are lost.

    The norms follow, for some want their input's type or float32.
    """
    for parameter in network.parameters():
        if parameter.requires_grad or parameter.dim() == 1:
            parameter.data = parameter.data.float()


def _begin(job: Job, name: str, layer: Any, original: Original) -> tuple[Tensor, Tensor] | None:
    """Fills A, B and the magnitude; what the base gives away (PiSSA) is subtracted, in its number type, and returned.

    Raises what the start's function raises, RecipeError where the base is packed.
    """
    base, scale, adapter = layer.base_layer, layer.scaling["default"], job.adapter
    turned = job.model.transposed
    made = begin(adapter.start, name, base, adapter.rank, scale, job.seed, original, transposed=turned)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    a.copy_(made.a)
    b.copy_(made.b)
    if made.taken:
        _refuse_packed([base], "adapter.start", adapter.start.name)
        base.weight -= (scale * b @ a).to(base.weight.dtype)
    if adapter.dora:
        norms = torch.linalg.vector_norm(base.weight.float() + scale * b @ a, dim=1)
        layer.lora_magnitude_vector["default"].weight.copy_(norms)
    return (a.clone(), b.clone()) if made.taken else None


def _undone(tensors: dict[str, Tensor], starts: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The adapter for the base as it came: beside what was trained stands, negative, what the base gave away."""
    for name, (a, b) in starts.items():
        tensors[f"{name}.lora_A"] = torch.cat((tensors[f"{name}.lora_A"], a))
        tensors[f"{name}.lora_B"] = torch.cat((tensors[f"{name}.lora_B"], -b), dim=1)
    return tensors


def _optimizer(job: Job, network: Any) -> torch.optim.Optimizer | None:
    """For LoRA+, which needs rates of its own for A and B; None leaves it to the trainer."""
    if job.adapter.rate_ratio == 1:
        return None
    settings = job.settings
    trained = {
        name.removesuffix(".weight").removesuffix(".default"): parameter
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    made = groups(trained, settings.learning_rate, job.adapter.rate_ratio)
    made.sort(key=lambda group: group["peak"] != settings.learning_rate)  # the trainer logs the first one's rate
    make = find("tunesmith.train.optimizers", settings.optimizer.name)
    optimizer: torch.optim.Optimizer = make(made, settings.learning_rate, settings.weight_decay)
    return optimizer


def _dataset(examples: Sequence[Example]) -> Dataset:
    return Dataset.from_list(
        [
            {
                "input_ids": list(example.ids),
                "labels": [i if keep else pack.IGNORED for i, keep in zip(example.ids, example.learnt, strict=True)],
            }
            for example in examples
        ]
    )


def _trainer(
    job: Job, network: Any, order: list[int], rows: int, micro: int, total: int, scribe: _Scribe, folder: Path
) -> SFTTrainer:
    settings = job.settings
    unknown = set(settings.optimizer.options) | set(settings.schedule.options)
    if unknown:
        raise RecipeError(f"engine trl takes no option '{sorted(unknown)[0]}'", where="train", next="Remove it")
    every = settings.checkpoint_every or settings.evaluate_every
    if job.valid and every % settings.evaluate_every:
        raise RecipeError(
            "engine trl needs checkpoint_every to be a multiple of evaluate_every", where="train.checkpoint_every"
        )
    config = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=1,  # `order` holds every epoch
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=rows // micro,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=SCHEDULES[settings.schedule.name],
        warmup_steps=warm_steps(settings.warmup, total),
        optim=OPTIMIZERS[settings.optimizer.name],
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        eval_strategy="steps" if job.valid else "no",
        eval_steps=settings.evaluate_every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=settings.keep + 1,
        load_best_model_at_end=bool(job.valid),
        metric_for_best_model="eval_loss" if job.valid else None,
        greater_is_better=False if job.valid else None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        seed=job.seed,
        data_seed=job.seed,
        bf16=job.precision == "bfloat16",
        fp16=job.precision == "float16",
        use_cpu=job.model.device.type == "cpu",
        gradient_checkpointing=job.recompute,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
        dataloader_pin_memory=job.model.device.type != "cpu",
        remove_unused_columns=False,
    )
    callbacks: list[Any] = [scribe]
    if settings.patience and job.valid:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=settings.patience))
    trainer = SFTTrainer(
        model=network,
        args=config,
        train_dataset=_dataset(job.train).select(order),
        eval_dataset=_dataset(job.valid) if job.valid else None,
        processing_class=job.tokenizer,
        callbacks=callbacks,
        optimizers=(_optimizer(job, network), None),
    )
    for name in ("PrinterCallback", "ProgressCallback"):  # only the command line prints
        for callback in [c for c in trainer.callback_handler.callbacks if type(c).__name__ == name]:
            trainer.remove_callback(callback)
    return trainer


class _Scribe(TrainerCallback):  # type: ignore[misc]
    """Writes the journal and carries the wish to stop."""

    def __init__(self, journal: Journal, job: Job, total: int, wish: Wish) -> None:
        self.journal, self.job, self.total, self.wish, self.paused = journal, job, total, wish, False
        self.began = self.tokens = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if self.wish.stop and state.global_step < self.total:
            self.paused = True
            control.should_save = control.should_training_stop = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise TrainingDiverged(
                f"the loss is {logs['loss']:g} at step {state.global_step}",
                where=str(self.job.folder),
                next="Lower train.learning_rate, or set train.precision to float32",
            )
        self.journal.tell(
            "step",
            state.global_step,
            total=self.total,
            epoch=round(self.job.settings.epochs * state.global_step / self.total, 3),
            loss=logs["loss"],
            rate=logs.get("learning_rate"),
            grad_norm=float(logs.get("grad_norm", math.nan)),
        )

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        self.journal.tell("valid", state.global_step, loss=metrics["eval_loss"])

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        write_atomic(Path(args.output_dir) / f"checkpoint-{state.global_step}" / "fingerprint", self.job.fingerprint)
        self.journal.tell("saved", state.global_step)


def _resumable(folder: Path, fingerprint: str) -> Path | None:
    """The newest checkpoint whose last-written file, our fingerprint, is there."""
    found = [path.parent for path in folder.glob("checkpoint-*/fingerprint")]
    newest = max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)
    if newest and (newest / "fingerprint").read_text() != fingerprint:
        raise RunError(
            "the checkpoints were made from other data, settings or weights",
            where=str(folder),
            next="Undo the change, or give --again to begin anew (the old run is kept aside)",
        )
    return newest


def _summary(job: Job, trainer: Any, journal: Journal) -> dict[str, Any]:
    best = trainer.state.best_model_checkpoint
    summary = {
        "steps": trainer.state.global_step,
        "best_step": int(best.rsplit("-", 1)[1]) if best else trainer.state.global_step,
        "best_loss": trainer.state.best_metric,
        "tokens": sum(map(len, job.train)) * job.settings.epochs,
        "seconds": round(float(trainer.state.log_history[-1].get("train_runtime", 0.0)), 1),
    }
    journal.tell("end", summary["steps"], **summary)
    return summary
