"""TRL's SFTTrainer with PEFT over the same frozen base, adapter start, steps and learning rates as the native engine.

SFTTrainer computes loss and gradients, clips and steps. Steps, rates, validation and checkpoints are the native
engine's, so that the two engines differ in rounding only.
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
from tunesmith.models.original_weights import OriginalWeights
from tunesmith.models.qlora import FrozenLinear
from tunesmith.models.shape import check_trained
from tunesmith.prompt import pack
from tunesmith.prompt.tokens import Example
from tunesmith.training.autograd_step import OVERHEAD, check_recompute, halved, validation_loss
from tunesmith.training.groups import groups
from tunesmith.training.job import Job, Outcome
from tunesmith.training.journal import Journal, opened
from tunesmith.training.progress import Checkpoints, plan_steps, step_event
from tunesmith.training.rate import learning_rate_factor
from tunesmith.training.signals import StopRequest, stop_on_signals
from tunesmith.training.validation import packed_error

SAVE_SECONDS = 120.0  # as the native engine


def train(job: Job) -> Outcome:
    """Fine-tunes and returns the best adapter.

    Raises RecipeError for settings that PEFT has no equal of, Paused on Ctrl-C, ResourceError when memory or disk run
    out, TrainingDiverged when loss or gradient are no numbers.
    """
    check_recompute(job)
    names = select_layers(job.model.frozen(), job.adapter.layers)
    configs = _checked(job, names)
    network, starts = _wrap(job, names)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    counted = check_trained(job.model.architecture, job.adapter, trained)
    parameters = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    optimizer = _optimizer(job, parameters)
    plan = plan_steps(job)
    checkpoints = Checkpoints(job, len(plan), parameters, optimizer)
    damaged = checkpoints.resume()
    files = job.folder / "journal.jsonl", job.folder / "tensorboard"
    with opened(*files, job.watcher, from_step=checkpoints.progress.step) as journal:
        with stop_on_signals() as wish, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            control = _Control(job, journal, checkpoints, wish)
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
        tensors = {outside(name): tensor for name, tensor in _undone(tensors, starts).items()}
        return Outcome(tensors, configs[bool(starts)], summary, counted)


def _checked(job: Job, names: list[str]) -> tuple[dict[str, object], dict[str, object]]:
    """The configurations to be written, of `peft_config`, plain and doubled; made before PEFT replaces modules.

    Raises RecipeError for what PEFT cannot do over our base, ModelError for what the model has not.
    """
    adapter, also = job.adapter, _whole(job)
    if job.model.experts():
        raise RecipeError("engine trl trains no mixture of experts", where="train.engine", next="Set it to native")
    check_trainable(job.model, names, also, adapter.bias)
    if adapter.dora:
        _refuse_packed(job.model.frozen().values(), "adapter.dora", "dora")
    plain, doubled = (
        peft_config(
            job.model, rank=adapter.rank, alpha=adapter.alpha, dropout=adapter.dropout, names=names,
            rs=adapter.scaling == "rs", dora=adapter.dora, train_also=also, bias=adapter.bias, double_rank=twice,
        )
        for twice in (False, True)
    )  # fmt: skip
    return plain, doubled


def _whole(job: Job) -> list[str]:
    return [which for which in ("embeddings", "head") if which in job.adapter.train_also]


def _refuse_packed(layers: Iterable[FrozenLinear], where: str, what: str) -> None:
    if any(layer.state is not None for layer in layers):
        raise packed_error(what, where)


def _wrap(job: Job, names: list[str]) -> tuple[Any, dict[str, tuple[Tensor, Tensor]]]:
    """PEFT's network, its adapter where ours would start; and the starts that were taken off the base, by layer."""
    adapter, model = job.adapter, job.model
    outer = [model.outer_module_name(which).rsplit(".", 1)[-1] for which in _whole(job)]
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
    original = OriginalWeights(model.weights, model.architecture)
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


def _begin(job: Job, name: str, layer: Any, original: OriginalWeights) -> tuple[Tensor, Tensor] | None:
    """Fills A, B and the magnitude; what the base gives away (PiSSA) is subtracted, in its number type, and returned.

    Raises what the start's function raises, RecipeError where the base is packed.
    """
    base, scale, adapter = layer.base_layer, layer.scaling["default"], job.adapter
    turned = job.model.transposed
    made = initial_factors(adapter.start, name, base, adapter.rank, scale, job.seed, original, transposed=turned)
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


def _optimizer(job: Job, parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimizer over the groups that the native engine has."""
    settings = job.settings
    renamed = {name.removesuffix(".weight").removesuffix(".default"): part for name, part in parameters.items()}
    made = groups(renamed, settings.learning_rate, job.adapter.rate_ratio)
    made.sort(key=lambda group: group["peak"] != settings.learning_rate)  # the trainer logs the first group's rate
    make = resolve("tunesmith.training.optimizers", settings.optimizer.name)
    optimizer: torch.optim.Optimizer = make(
        made, settings.learning_rate, settings.weight_decay, **settings.optimizer.options
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


def _config(job: Job) -> SFTConfig:
    config = SFTConfig(
        output_dir=str(job.folder / "checkpoints"),
        num_train_epochs=1,  # the loader has the steps of all epochs
        per_device_train_batch_size=1,  # of the loader's batches, each of which is a whole step
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
        bf16=False,  # autocast would compute the update in 16 bits too, where small ones are lost
        fp16=False,  # the loss is scaled by `_Trainer`, as by the native engine
        use_cpu=job.model.device.type == "cpu",
        gradient_checkpointing=job.recompute,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    if config.n_gpu > 1:
        config._n_gpu = 1  # otherwise the trainer would spread each batch over all GPUs with DataParallel
    return config


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose loader yields whole steps, each computed in micro-batches that fit."""

    def __init__(
        self,
        job: Job,
        network: Any,
        optimizer: torch.optim.Optimizer,
        plan: list[list[int]],
        control: _Control,
    ) -> None:
        self.job, self.own = job, control
        self.steps = [sorted(rows) for rows in plan[control.checkpoints.progress.step :]]  # micro-batches as native's
        super().__init__(
            model=network,
            args=_config(job),
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
        """A step's rows, padded on the right."""
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
        """A loader of the steps that are still to be made; it draws nothing from torch's own random state."""
        apart = torch.Generator()
        return DataLoader(self.train_dataset, batch_sampler=self.steps, collate_fn=self._collate, generator=apart)

    def training_step(self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """The mean loss over a step's learnt tokens, its gradient left in the parameters, however it is divided.

        An overflow of the scaled float16 gradient repeats the step at half the scale, so that no step is lost.
        """
        lengths = [int(length) for length in inputs["attention_mask"].sum(1)]
        while True:
            try:
                loss = self._accumulated(model, inputs, lengths)
            except torch.OutOfMemoryError:
                model.zero_grad()
                torch.cuda.empty_cache()
                self.own.shrink(max(lengths))
                continue
            gradients = [p.grad for p in self.own.checkpoints.parameters.values() if p.grad is not None]
            torch._foreach_div_(gradients, self._scale())
            norm = float(nn.utils.get_total_norm(gradients))
            if math.isfinite(float(loss)) and math.isfinite(norm):
                learnt = int((inputs["labels"][:, 1:] != pack.IGNORE_INDEX).sum())
                self.own.computed(float(loss), norm, sum(lengths), learnt)
                return loss
            self.own.checkpoints.overflowed(float(loss), norm, self.own.journal)
            model.zero_grad()

    def _accumulated(self, model: Any, inputs: dict[str, Tensor], lengths: list[int]) -> Tensor:
        micro_tokens = self.own.checkpoints.progress.micro_tokens
        overhead = OVERHEAD[self.job.model.device.type]
        learnt = (inputs["labels"][:, 1:] != pack.IGNORE_INDEX).sum().to(self.args.device)
        loss = torch.zeros((), device=self.args.device)
        for rows in pack.micro_batches(range(len(lengths)), lengths, micro_tokens, overhead=overhead):
            longest = max(lengths[row] for row in rows)
            micro = {name: tensor[rows, :longest] for name, tensor in inputs.items()}
            loss = loss + super().training_step(model, micro, num_items_in_batch=learnt).float() / self._scale()
        return loss

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Tensor:
        """SFTTrainer's loss, scaled for float16."""
        with _casting(self.job):
            loss: Tensor = super().compute_loss(model, inputs, *rest, **more)
        return loss * self._scale()

    def _scale(self) -> float:
        return self.own.checkpoints.progress.scale if self.job.precision == "float16" else 1.0


def _casting(job: Job) -> contextlib.AbstractContextManager[Any]:
    """Embeddings, head and biases that PEFT trains are float32 amid layers in 16 bits, so they need autocast."""
    if job.precision == "float32" or not (job.adapter.train_also or job.adapter.bias != "none"):
        return contextlib.nullcontext()
    return torch.autocast(job.model.device.type, dtype=getattr(torch, job.precision))


def _scheduler(job: Job, optimizer: torch.optim.Optimizer, total: int, step: int) -> torch.optim.lr_scheduler.LambdaLR:
    """The native engine's learning rates, from `step` on; no step is made at rate 0."""
    schedule = resolve("tunesmith.training.schedules", job.settings.schedule.name)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: learning_rate_factor(min(step + done, total - 1), total, job.settings.warmup, schedule)
    )


class _Control(TrainerCallback):  # type: ignore[misc]
    """Journal, validation, checkpoints and the wish to stop, after each of the trainer's steps."""

    def __init__(self, job: Job, journal: Journal, checkpoints: Checkpoints, wish: StopRequest) -> None:
        self.job, self.journal, self.checkpoints, self.wish = job, journal, checkpoints, wish
        self.began = 0.0
        self.step: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The trainer has seeded and prepared everything by now."""
        torch.manual_seed(self.job.seed)
        self.checkpoints.restore_optimizer()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()

    def computed(self, loss: float, norm: float, tokens: int, learnt: int) -> None:
        """Takes over what the trainer computed for a step, before it clips and steps."""
        self.step = {"loss": loss, "grad_norm": norm, "tokens": tokens, "learnt": learnt}

    def shrink(self, longest: int) -> None:
        """Halves the micro-batches after memory ran out. Raises ResourceError."""
        progress = self.checkpoints.progress
        progress.micro_tokens = halved(progress.micro_tokens, longest, str(self.job.folder))
        text = f"out of memory: micro-batches now hold {progress.micro_tokens} tokens, the step is the same"
        self.journal.tell("note", progress.step, text=text)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> Any:
        """Ends a step: journal, validation, checkpoint. Raises Paused when the user wants to stop."""
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
        if self.wish.stop and not progress.ended:
            checkpoints.save(self.journal)
            raise checkpoints.paused()
        control.should_training_stop = control.should_training_stop or progress.ended
        return control

    def validate(self) -> None:
        """Validates as the native engine does: the mean over all learnt tokens of the validation rows."""
        progress = self.checkpoints.progress
        if not self.job.valid:
            progress.best_step = progress.step
            return
        with _casting(self.job):
            total, learnt = validation_loss(self.job, progress.micro_tokens, range(len(self.job.valid)))
        if self.checkpoints.validated(total / learnt, self.journal):
            self.checkpoints.save(self.journal)
