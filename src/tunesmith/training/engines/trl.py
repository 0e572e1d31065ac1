"""Trains with TRL's SFTTrainer and PEFT.

SFTTrainer computes loss and gradients, clips and steps. Frozen base, adapter initialization, order of rows, learning
rates, validation and checkpoints are the native engine's, so the two engines differ in rounding only.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from tunesmith.config.registry import resolve
from tunesmith.errors import RecipeError
from tunesmith.models.adapter import from_peft_names, peft_config
from tunesmith.models.architecture import select_layers
from tunesmith.models.build import check_trainable, initial_factors
from tunesmith.models.count_parameters import check_trained
from tunesmith.models.original_weights import OriginalWeights
from tunesmith.models.qlora import FrozenLinear
from tunesmith.prompt import pack
from tunesmith.prompt.tokens import Example
from tunesmith.training.autograd_step import OVERHEAD, check_recompute, halve_micro_batch, validation_loss
from tunesmith.training.job import Job, Journal, Outcome, StopRequest, open_journal, stop_on_signals
from tunesmith.training.optimizers import parameter_groups
from tunesmith.training.progress import Checkpoints, plan_steps, step_event
from tunesmith.training.schedules import learning_rate_factor
from tunesmith.training.validation import packed_error

SAVE_SECONDS = 120.0  # as the native engine


def train(job: Job) -> Outcome:
    """Fine-tunes and returns the best adapter.

    Raises RecipeError for settings that PEFT does not support, Paused on Ctrl-C, ResourceError if memory or disk run
    out, TrainingDiverged if loss or gradient are not finite.
    """
    check_recompute(job)
    names = select_layers(job.model.frozen(), job.adapter.layers)
    configs = _peft_configs(job, names)
    network, subtracted_factors = _add_peft_adapter(job, names)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    counted = check_trained(job.model.architecture, job.adapter, trained)
    parameters = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    optimizer = _optimizer(job, parameters)
    plan = plan_steps(job)
    checkpoints = Checkpoints(job, len(plan), parameters, optimizer)
    damaged = checkpoints.resume()
    files = job.folder / "journal.jsonl", job.folder / "tensorboard"
    with open_journal(*files, job.watcher, from_step=checkpoints.progress.step) as journal:
        with stop_on_signals() as stop_request, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            control = _LoopCallback(job, journal, checkpoints, stop_request)
            checkpoints.begin(journal, damaged)
            if not checkpoints.progress.ended:
                trainer = _Trainer(job, network, optimizer, plan, control)
                if not checkpoints.progress.step:
                    control.validate()
                trainer.train()
        checkpoints.restore_best()
        summary = checkpoints.summary()
        tensors = from_peft_names(get_peft_model_state_dict(network, save_embedding_layers=False))
        journal.tell("end", summary["steps"], **summary)
        outside = job.model.architecture.outside
        tensors = {
            outside(name): tensor for name, tensor in _restore_original_base(tensors, subtracted_factors).items()
        }
        return Outcome(tensors, configs[bool(subtracted_factors)], summary, counted)


def _peft_configs(job: Job, names: list[str]) -> tuple[dict[str, object], dict[str, object]]:
    """Returns the adapter's PEFT configurations at its own and at double rank, before PEFT replaces modules.

    Raises RecipeError for what PEFT cannot do with our base, ModelError for modules that the model lacks.
    """
    adapter, extra_modules = job.adapter, _modules_to_save(job)
    if job.model.experts():
        raise RecipeError("engine trl cannot train a mixture of experts", where="train.engine", next="Set it to native")
    check_trainable(job.model, names, extra_modules, adapter.bias)
    if adapter.dora:
        _refuse_packed(job.model.frozen().values(), "adapter.dora", "dora")
    plain, doubled = (
        peft_config(
            job.model, rank=adapter.rank, alpha=adapter.alpha, dropout=adapter.dropout, names=names,
            rs=adapter.scaling == "rs", dora=adapter.dora, train_also=extra_modules, bias=adapter.bias,
            double_rank=doubled_rank,
        )
        for doubled_rank in (False, True)
    )  # fmt: skip
    return plain, doubled


def _modules_to_save(job: Job) -> list[str]:
    return [which for which in ("embeddings", "head") if which in job.adapter.train_also]


def _refuse_packed(layers: Iterable[FrozenLinear], where: str, variant: str) -> None:
    if any(layer.state is not None for layer in layers):
        raise packed_error(variant, where)


def _add_peft_adapter(job: Job, names: list[str]) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
    """Returns PEFT's network with our initial adapter, and by layer the factors that were subtracted from the base."""
    adapter, model = job.adapter, job.model
    module_names = [model.outer_module_name(which).rsplit(".", 1)[-1] for which in _modules_to_save(job)]
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=names,
        use_rslora=adapter.scaling == "rs",
        use_dora=adapter.dora,
        bias=adapter.bias,
        modules_to_save=module_names or None,
        ensure_weight_tying=bool(module_names) and model.tied,
        task_type="CAUSAL_LM",
    )
    original = OriginalWeights(model.weights, model.architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses a deprecated name of transformers
        network = get_peft_model(model.network, config)
    subtracted_factors = {}
    with torch.no_grad():
        if module_names or adapter.bias != "none":
            _cast_to_float32(network)
        for name in names:
            layer = network.base_model.model.get_submodule(name)
            if subtracted := _init_layer(job, name, layer, original):
                subtracted_factors[name] = subtracted
    return network, subtracted_factors


def _cast_to_float32(network: Any) -> None:
    """Casts biases and fully trained modules to float32, since small updates are lost in the 16 bits that PEFT keeps.

    Norms are cast as well, because some require their input's dtype or float32.
    """
    for parameter in network.parameters():
        if parameter.requires_grad or parameter.dim() == 1:
            parameter.data = parameter.data.float()


def _init_layer(job: Job, name: str, layer: Any, original: OriginalWeights) -> tuple[Tensor, Tensor] | None:
    """Initializes A, B and the magnitude of a layer.

    PiSSA's initial update is subtracted from the base, in its dtype, and returned. Raises what the initialization
    raises, and RecipeError if PiSSA meets an NF4 base.
    """
    base, scale, adapter = layer.base_layer, layer.scaling["default"], job.adapter
    is_transposed = job.model.transposed
    init = initial_factors(adapter.start, name, base, adapter.rank, scale, job.seed, original, transposed=is_transposed)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    a.copy_(init.a)
    b.copy_(init.b)
    if init.taken:
        _refuse_packed([base], "adapter.start", adapter.start.name)
        base.weight -= (scale * b @ a).to(base.weight.dtype)
    if adapter.dora:
        norms = torch.linalg.vector_norm(base.weight.float() + scale * b @ a, dim=1)
        layer.lora_magnitude_vector["default"].weight.copy_(norms)
    return (a.clone(), b.clone()) if init.taken else None


def _restore_original_base(
    tensors: dict[str, Tensor], subtracted_factors: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Returns the adapter for the original base: it appends the negative of what was subtracted from the base."""
    for name, (a, b) in subtracted_factors.items():
        tensors[f"{name}.lora_A"] = torch.cat((tensors[f"{name}.lora_A"], a))
        tensors[f"{name}.lora_B"] = torch.cat((tensors[f"{name}.lora_B"], -b), dim=1)
    return tensors


def _optimizer(job: Job, parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Returns the recipe's optimizer with the native engine's parameter groups."""
    settings = job.settings
    renamed = {name.removesuffix(".weight").removesuffix(".default"): part for name, part in parameters.items()}
    param_groups = parameter_groups(renamed, settings.learning_rate, job.adapter.rate_ratio)
    param_groups.sort(
        key=lambda group: group["peak"] != settings.learning_rate
    )  # the trainer logs the first group's rate
    build = resolve("tunesmith.training.optimizers", settings.optimizer.name)
    optimizer: torch.optim.Optimizer = build(
        param_groups, settings.learning_rate, settings.weight_decay, **settings.optimizer.options
    )
    return optimizer


def _dataset(examples: Sequence[Example]) -> Dataset:
    return Dataset.from_list(
        [
            {
                "input_ids": list(example.ids),
                "labels": [
                    i if keep else pack.IGNORE_INDEX for i, keep in zip(example.ids, example.loss_mask, strict=True)
                ],
            }
            for example in examples
        ]
    )


def _sft_config(job: Job) -> SFTConfig:
    config = SFTConfig(
        output_dir=str(job.folder / "checkpoints"),
        num_train_epochs=1,  # the loader yields the steps of all epochs
        per_device_train_batch_size=1,  # each of the loader's batches is a whole step
        gradient_accumulation_steps=1,
        max_grad_norm=job.settings.clip,
        router_aux_loss_coef=0.0,
        eval_strategy="no",
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        seed=job.seed,
        bf16=False,  # autocast would compute the update in 16 bits too, which loses small ones
        fp16=False,  # the loss is scaled by `_Trainer`, as by the native engine
        use_cpu=job.model.device.type == "cpu",
        gradient_checkpointing=job.recompute,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    if config.n_gpu > 1:
        config._n_gpu = 1  # otherwise the trainer would use DataParallel
    return config


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose loader yields whole steps, each computed in micro-batches that fit."""

    def __init__(
        self,
        job: Job,
        network: Any,
        optimizer: torch.optim.Optimizer,
        plan: list[list[int]],
        control: _LoopCallback,
    ) -> None:
        self.job, self.loop = job, control
        self.steps = [
            sorted(rows) for rows in plan[control.checkpoints.progress.step :]
        ]  # gives the native engine's micro-batches
        super().__init__(
            model=network,
            args=_sft_config(job),
            train_dataset=_dataset(job.train),
            data_collator=self._collate,
            processing_class=job.tokenizer,
            callbacks=[control],
            optimizers=(optimizer, _scheduler(job, optimizer, len(plan), control.checkpoints.progress.step)),
        )
        for name in ("PrinterCallback", "ProgressCallback"):  # only the command line prints
            for callback in [c for c in self.callback_handler.callbacks if type(c).__name__ == name]:
                self.remove_callback(callback)

    def _collate(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Pads a step's rows on the right."""
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(key: str, fill: int) -> Tensor:
            return torch.tensor([row[key] + [fill] * (longest - len(row[key])) for row in rows])

        mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
        return {
            "input_ids": padded("input_ids", self.job.pad),
            "attention_mask": torch.tensor(mask),
            "labels": padded("labels", pack.IGNORE_INDEX),
        }

    def get_train_dataloader(self) -> Any:
        """Returns a loader of the remaining steps that leaves torch's global random state alone."""
        own_generator = torch.Generator()
        return DataLoader(
            self.train_dataset, batch_sampler=self.steps, collate_fn=self._collate, generator=own_generator
        )

    def training_step(self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """Computes the gradient of a step's mean loss over its tokens with loss, and returns the loss.

        If the scaled float16 gradient overflows, the step is repeated at half the scale, so that no step is lost.
        """
        lengths = [int(length) for length in inputs["attention_mask"].sum(1)]
        while True:
            try:
                loss = self._accumulated(model, inputs, lengths)
            except torch.OutOfMemoryError:
                model.zero_grad()
                torch.cuda.empty_cache()
                self.loop.shrink(max(lengths))
                continue
            gradients = [p.grad for p in self.loop.checkpoints.parameters.values() if p.grad is not None]
            torch._foreach_div_(gradients, self._scale())
            norm = float(nn.utils.get_total_norm(gradients))
            if math.isfinite(float(loss)) and math.isfinite(norm):
                loss_tokens = int((inputs["labels"][:, 1:] != pack.IGNORE_INDEX).sum())
                self.loop.computed(float(loss), norm, sum(lengths), loss_tokens)
                return loss
            self.loop.checkpoints.overflowed(float(loss), norm, self.loop.journal)
            model.zero_grad()

    def _accumulated(self, model: Any, inputs: dict[str, Tensor], lengths: list[int]) -> Tensor:
        micro_tokens = self.loop.checkpoints.progress.micro_tokens
        overhead = OVERHEAD[self.job.model.device.type]
        loss_tokens = (inputs["labels"][:, 1:] != pack.IGNORE_INDEX).sum().to(self.args.device)
        loss = torch.zeros((), device=self.args.device)
        for rows in pack.micro_batches(range(len(lengths)), lengths, micro_tokens, overhead=overhead):
            longest = max(lengths[row] for row in rows)
            micro = {name: tensor[rows, :longest] for name, tensor in inputs.items()}
            loss = loss + super().training_step(model, micro, num_items_in_batch=loss_tokens).float() / self._scale()
        return loss

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Tensor:
        """Returns SFTTrainer's loss, scaled for float16."""
        with _autocast(self.job):
            loss: Tensor = super().compute_loss(model, inputs, *rest, **more)
        return loss * self._scale()

    def _scale(self) -> float:
        return self.loop.checkpoints.progress.scale if self.job.precision == "float16" else 1.0


def _autocast(job: Job) -> contextlib.AbstractContextManager[Any]:
    """Returns autocast if PEFT trains embeddings, head or biases, which are float32 between 16-bit layers."""
    if job.precision == "float32" or not (job.adapter.train_also or job.adapter.bias != "none"):
        return contextlib.nullcontext()
    return torch.autocast(job.model.device.type, dtype=getattr(torch, job.precision))


def _scheduler(job: Job, optimizer: torch.optim.Optimizer, total: int, step: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Returns the native engine's learning rates from `step` on; no step has rate 0."""
    schedule = resolve("tunesmith.training.schedules", job.settings.schedule.name)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: learning_rate_factor(min(step + done, total - 1), total, job.settings.warmup, schedule)
    )


class _LoopCallback(TrainerCallback):  # type: ignore[misc]
    """Writes journal and checkpoints, validates and handles stop requests after each of the trainer's steps."""

    def __init__(self, job: Job, journal: Journal, checkpoints: Checkpoints, stop_request: StopRequest) -> None:
        self.job, self.journal, self.checkpoints, self.stop_request = job, journal, checkpoints, stop_request
        self.began = 0.0
        self.step: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seeds and restores the optimizer after the trainer's own preparation."""
        torch.manual_seed(self.job.seed)
        self.checkpoints.restore_optimizer()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()

    def computed(self, loss: float, norm: float, tokens: int, loss_tokens: int) -> None:
        """Records what the trainer computed for a step, before it clips and steps."""
        self.step = {"loss": loss, "grad_norm": norm, "tokens": tokens, "learnt": loss_tokens}

    def shrink(self, longest: int) -> None:
        """Halves the micro-batches after memory ran out. Raises ResourceError if one row does not fit."""
        progress = self.checkpoints.progress
        progress.micro_tokens = halve_micro_batch(progress.micro_tokens, longest, str(self.job.folder))
        text = f"out of memory: micro-batches now hold {progress.micro_tokens} tokens; the step is unchanged"
        self.journal.tell("note", progress.step, text=text)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> Any:
        """Ends a step: journal, validation, checkpoint. Raises Paused on a stop request."""
        if not logs or "loss" not in logs:
            return control
        checkpoints, progress, settings = self.checkpoints, self.checkpoints.progress, self.job.settings
        seconds = time.perf_counter() - self.began
        progress.step += 1
        progress.tokens += self.step["tokens"]
        progress.seconds += seconds
        progress.ended = progress.step >= checkpoints.total
        values = step_event(progress, checkpoints.total, settings.epochs, seconds, self.step.pop("tokens"))
        self.journal.tell("step", progress.step, rate=logs["learning_rate"], **self.step, **values)
        checkpoints.rehearse()
        if checkpoints.validation_is_due():
            self.validate()
        if checkpoints.saving_is_due(SAVE_SECONDS):
            checkpoints.save(self.journal)
        if self.stop_request.stop and not progress.ended:
            checkpoints.save(self.journal)
            raise checkpoints.paused()
        control.should_training_stop = control.should_training_stop or progress.ended
        return control

    def validate(self) -> None:
        """Validates like the native engine: the mean loss over all tokens with loss of the validation rows."""
        progress = self.checkpoints.progress
        if not self.job.valid:
            progress.best_step = progress.step
            return
        with _autocast(self.job):
            total, loss_tokens = validation_loss(self.job, progress.micro_tokens, range(len(self.job.valid)))
        if self.checkpoints.validated(total / loss_tokens, self.journal):
            self.checkpoints.save(self.journal)
