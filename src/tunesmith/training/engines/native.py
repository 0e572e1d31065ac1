"""Our training loop. After a kill at any moment, the same call resumes and ends with the same adapter."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import torch

from tunesmith.config.registry import resolve
from tunesmith.errors import ResourceError, RunError
from tunesmith.models.adapter import adapter_state
from tunesmith.models.build import add_adapter
from tunesmith.models.count_parameters import check_trained
from tunesmith.models.fuse import unfused_reasons
from tunesmith.prompt import pack
from tunesmith.runs.run import is_main_process
from tunesmith.training import autograd_step, distributed, fused_step
from tunesmith.training.autograd_step import check_head
from tunesmith.training.job import Job, Journal, Outcome, StopRequest, open_journal, stop_on_signals
from tunesmith.training.optimizers import parameter_groups
from tunesmith.training.progress import Checkpoints, Progress, plan_steps, step_event
from tunesmith.training.schedules import learning_rate_factor

T = TypeVar("T")
Gradients: TypeAlias = autograd_step.AutogradStep | fused_step.FusedStep
SAVE_SECONDS = 120.0  # the most work that a kill loses, however slow the steps are


def train(job: Job) -> Outcome:
    """Fine-tunes and returns the best adapter.

    Raises Paused on Ctrl-C, ResourceError if memory or disk run out, TrainingDiverged if the loss is not finite.
    """
    return _Loop(job).run()


class _Loop:
    def __init__(self, job: Job) -> None:
        self.job, self.model, self.settings = job, job.model, job.settings
        self.folder = job.folder / "checkpoints"
        adapter = job.adapter
        add_adapter(
            job.model,
            rank=adapter.rank,
            alpha=adapter.alpha,
            layers=adapter.layers,
            dropout=adapter.dropout,
            seed=job.seed,
            scaling=adapter.scaling,
            dora=adapter.dora,
            start=adapter.start,
            train_also=adapter.train_also,
            bias=adapter.bias,
            experts=adapter.experts,
        )
        self.parameters = job.model.trainable()
        trained = sum(parameter.numel() for parameter in self.parameters.values())
        self.trained = check_trained(job.model.architecture, adapter, trained)
        fused = bool(job.layout.forms) and not unfused_reasons(job.model)
        step_class = fused_step.FusedStep if fused else autograd_step.AutogradStep
        self.gradients: Gradients = step_class(job, job.micro_tokens)
        build_optimizer = resolve("tunesmith.training.optimizers", self.settings.optimizer.name)
        self.optimizer: torch.optim.Optimizer = build_optimizer(
            parameter_groups(self.gradients.trained, self.settings.learning_rate, job.adapter.rate_ratio),
            self.settings.learning_rate,
            self.settings.weight_decay,
            **self.settings.optimizer.options,
        )
        self.peaks = [group["peak"] for group in self.optimizer.param_groups]
        self.schedule = resolve("tunesmith.training.schedules", self.settings.schedule.name)
        self.plan = plan_steps(job)
        self.lengths = [len(example) for example in job.train]
        self.loss_tokens = [sum(example.loss_mask[1:]) for example in job.train] if distributed.world_size() > 1 else []
        self.checkpoints = Checkpoints(job, len(self.plan), self.parameters, self.optimizer)
        self.stop_request = StopRequest()
        self.own_tokens = 0
        self.stopping = False  # whether any process got a stop request by the last step
        torch.manual_seed(job.seed)

    @property
    def progress(self) -> Progress:
        return self.checkpoints.progress

    # --- the loop -------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        damaged = self.checkpoints.resume()
        self.checkpoints.restore_optimizer()
        self.gradients.micro_tokens = self.progress.micro_tokens
        self.gradients.updated()
        self._level()
        with self._journal() as journal:
            self._begin(journal, damaged)
            self._prepare(journal)
            with stop_on_signals() as self.stop_request:
                while not self.progress.ended:
                    self._step(journal)
                    self.checkpoints.rehearse()
                    if self.checkpoints.validation_is_due():
                        self._validate(journal)
                    if self.checkpoints.saving_is_due(SAVE_SECONDS):
                        self.checkpoints.save(journal)
                    if self._stops() and not self.progress.ended:
                        self.checkpoints.save(journal)
                        distributed.barrier()  # the first process to end makes torchrun end the others
                        raise self.checkpoints.paused()
            return self._end(journal)

    @contextlib.contextmanager
    def _journal(self) -> Iterator[Journal]:
        job = self.job
        if not is_main_process():
            yield distributed.SilentJournal()
            return
        files = job.folder / "journal.jsonl", job.folder / "tensorboard"
        with open_journal(*files, job.watcher, from_step=self.progress.step) as journal:
            yield journal

    def _level(self) -> None:
        """Copies the main process's parameters to all: a decomposition on another GPU may differ in a bit."""
        step = self.progress.step
        if (distributed.all_reduce_max(step), distributed.all_reduce_max(-step)) != (step, -step):
            raise RunError(
                "the processes found different checkpoints",
                where=str(self.folder),
                next="Make sure that all processes see the same folder of runs",
            )
        initial_factors = [part for layer in self.model.lora.values() for part in (layer.start_A, layer.start_B)]
        distributed.broadcast_tensors(
            [*self.gradients.trained.values(), *(part for part in initial_factors if part is not None)]
        )
        self.gradients.updated()

    def _stops(self) -> bool:
        return self.stopping or (distributed.world_size() == 1 and self.stop_request.stop)

    def _begin(self, journal: Journal, damaged: list[int]) -> None:
        if self.progress.step:
            return self.checkpoints.begin(journal, damaged)
        fused = self.gradients.first_loss() if isinstance(self.gradients, fused_step.FusedStep) else None
        check_head(self.model, pack.collate(self.job.train[:1], self.job.pad), fused)
        self.checkpoints.begin(journal, damaged)
        self._validate(journal)

    def _prepare(self, journal: Journal) -> None:
        """Captures CUDA graphs for the remaining steps, if the fused step uses them."""
        while isinstance(self.gradients, fused_step.FusedStep) and not self.progress.ended:
            try:
                remaining = self.plan[self.progress.step :]
                return self.gradients.prepare([distributed.local_rows(rows, self.lengths) for rows in remaining])
            except torch.OutOfMemoryError:
                self._shrink([], journal)

    def _step(self, journal: Journal) -> None:
        start = time.perf_counter()
        progress, rows = self.progress, self.plan[self.progress.step]
        factor = learning_rate_factor(progress.step, len(self.plan), self.settings.warmup, self.schedule)
        rate = self.settings.learning_rate * factor
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self._draw_apart()
        loss, norm, tokens, loss_tokens = self._finite_gradients(rows, journal)
        self.optimizer.step()
        self.gradients.updated()
        self.gradients.clear()
        progress.step += 1
        progress.tokens += tokens
        seconds = time.perf_counter() - start
        progress.seconds += seconds
        progress.ended = progress.step >= len(self.plan)
        values = step_event(progress, len(self.plan), self.settings.epochs, seconds, tokens)
        journal.tell("step", progress.step, loss=loss, rate=rate, grad_norm=norm, learnt=loss_tokens, **values)

    def _finite_gradients(self, rows: Sequence[int], journal: Journal) -> tuple[float, float, int, int]:
        """Computes the clipped gradient; returns loss, gradient norm, tokens and tokens with loss.

        If the scaled float16 gradient overflows, the step is repeated at half the scale, so that no step is lost.
        Raises TrainingDiverged if loss or gradient are not finite.
        """
        while True:
            loss, tokens, loss_tokens = self._gradients(rows, journal)
            norm = self._clip()
            if math.isfinite(loss) and math.isfinite(norm):
                return loss, norm, tokens, loss_tokens
            self.gradients.clear()
            self.checkpoints.overflowed(loss, norm, journal)

    def _gradients(self, rows: Sequence[int], journal: Journal) -> tuple[float, int, int]:
        """Computes the gradient of the mean loss over the step's tokens with loss; returns loss and both counts."""
        scale = self.progress.scale if self.job.precision == "float16" else 1.0
        own_rows = distributed.local_rows(rows, self.lengths)
        step_loss_tokens = sum(self.loss_tokens[row] for row in rows) if self.loss_tokens else None
        while True:
            try:
                local = self.gradients.step(own_rows, scale, step_loss_tokens)
                break
            except torch.OutOfMemoryError:
                self._shrink(own_rows, journal)
        self.own_tokens += local[1]
        numbers = [*local, float(self.stop_request.stop)]
        loss, tokens, loss_count, stop = distributed.all_reduce_sum(
            list(self.gradients.trained.values()), numbers, self.model.device
        )
        self.stopping = stop > 0
        return loss, int(tokens), int(loss_count)

    def _draw_apart(self) -> None:
        """Seeds dropout differently in each process but the main one, as a function of the step."""
        if distributed.rank() and self.job.adapter.dropout:
            name = f"{self.job.seed}/{distributed.rank()}/{self.progress.step}"
            torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1)

    def _shrink(self, rows: Sequence[int], journal: Journal) -> None:
        if autograd_step.is_sharded(self.job):  # the other processes wait in a layer's collective
            raise ResourceError(
                "out of memory, and with a sharded base one process cannot reduce its micro-batches alone",
                where=str(self.job.folder),
                next="Lower train.memory or prompt.max_tokens, then run the same command again to resume",
            )
        self.progress.micro_tokens = self.gradients.shrink(rows)
        text = f"out of memory: micro-batches now hold {self.progress.micro_tokens} tokens; the step is unchanged"
        journal.tell("note", self.progress.step, text=text)

    def _clip(self) -> float:
        trained = list(self.gradients.trained.values())
        if self.job.precision == "float16":
            for parameter in trained:
                if parameter.grad is not None:
                    parameter.grad /= self.progress.scale
        return float(torch.nn.utils.clip_grad_norm_(trained, self.settings.clip))

    def _padding(self) -> float:
        """Returns the share of padding in the tokens that this process sent through the model."""
        return 1 - self.own_tokens / self.gradients.spent if self.gradients.spent else 0.0

    # --- validation, checkpoints ----------------------------------------------------------------------------

    def _validate(self, journal: Journal) -> None:
        progress = self.progress
        if not self.job.valid:
            progress.best_step = progress.step
            return
        own_rows = distributed.local_rows(range(len(self.job.valid)), [len(example) for example in self.job.valid])
        total, loss_tokens = distributed.all_reduce_sum([], self.gradients.validation(own_rows), self.model.device)
        score = self._score() if progress.step else None
        values: dict[str, Any] = {} if score is None else {"score": score}
        if self.job.sampler is not None:
            values["samples"] = self._with_generation(self.job.sampler)
        if self.checkpoints.validated(total / loss_tokens, journal, **values):
            self.checkpoints.save(journal)

    def _score(self) -> float | None:
        """Returns the score of generated replies if the recipe selects checkpoints by it, else None."""
        return None if self.job.scorer is None else self._with_generation(self.job.scorer)

    def _with_generation(self, generate: Callable[[Any], T]) -> T:
        """Calls `generate` with the fused decoder in the main process; all processes get its result."""
        fused = self.gradients.fused if isinstance(self.gradients, fused_step.FusedStep) else None
        return distributed.broadcast_object(lambda: generate(fused))

    def _end(self, journal: Journal) -> Outcome:
        if self.checkpoints.restore_best():
            self.gradients.updated()
        config, tensors = adapter_state(self.model)
        summary = {**self.checkpoints.summary(), "padding": round(self._padding(), 4)}
        journal.tell("end", self.progress.step, **summary)
        return Outcome(dict(tensors), config, summary, self.trained)
