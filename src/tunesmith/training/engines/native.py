"""Our training loop. Killed at any moment, the same call goes on and ends with the same adapter."""

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
from tunesmith.models.fuse import unfused_reasons
from tunesmith.models.shape import check_trained
from tunesmith.prompt import pack
from tunesmith.runs.run import is_main_process
from tunesmith.training import autograd_step, distributed, fused_step
from tunesmith.training.groups import groups
from tunesmith.training.job import Job, Outcome
from tunesmith.training.journal import Journal, opened
from tunesmith.training.loss import check_head
from tunesmith.training.progress import Checkpoints, Progress, plan_steps, step_event
from tunesmith.training.rate import learning_rate_factor
from tunesmith.training.signals import StopRequest, stop_on_signals

T = TypeVar("T")
Gradients: TypeAlias = autograd_step.AutogradStep | fused_step.FusedStep
SAVE_SECONDS = 120.0  # a kill costs no more than this, however slow the steps are


def train(job: Job) -> Outcome:
    """Fine-tunes and returns the best adapter.

    Raises Paused on Ctrl-C, ResourceError when memory or disk run out, TrainingDiverged when the loss is no number.
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
        step = fused_step.FusedStep if fused else autograd_step.AutogradStep
        self.gradients: Gradients = step(job, job.micro_tokens)
        make = resolve("tunesmith.training.optimizers", self.settings.optimizer.name)
        self.optimizer: torch.optim.Optimizer = make(
            groups(self.gradients.trained, self.settings.learning_rate, job.adapter.rate_ratio),
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
        self.wish = StopRequest()
        self.own_tokens = 0
        self.stopping = False  # any process's wish, at the last step
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
            with stop_on_signals() as self.wish:
                while not self.progress.ended:
                    self._step(journal)
                    self.checkpoints.rehearse()
                    if self.checkpoints.validation_is_due():
                        self._validate(journal)
                    if self.checkpoints.saving_is_due(SAVE_SECONDS):
                        self.checkpoints.save(journal)
                    if self._stops() and not self.progress.ended:
                        self.checkpoints.save(journal)
                        distributed.barrier()  # whoever ends first ends the others
                        raise self.checkpoints.paused()
            return self._end(journal)

    @contextlib.contextmanager
    def _journal(self) -> Iterator[Journal]:
        job = self.job
        if not is_main_process():
            yield distributed.SilentJournal()
            return
        files = job.folder / "journal.jsonl", job.folder / "tensorboard"
        with opened(*files, job.watcher, from_step=self.progress.step) as journal:
            yield journal

    def _level(self) -> None:
        """All processes begin with the first one's numbers: a decomposition on another card may differ in a bit."""
        step = self.progress.step
        if (distributed.all_reduce_max(step), distributed.all_reduce_max(-step)) != (step, -step):
            raise RunError(
                "the processes found different checkpoints",
                where=str(self.folder),
                next="All processes must see the same folder of runs",
            )
        starts = [part for layer in self.model.lora.values() for part in (layer.start_A, layer.start_B)]
        distributed.broadcast_tensors(
            [*self.gradients.trained.values(), *(part for part in starts if part is not None)]
        )
        self.gradients.updated()

    def _stops(self) -> bool:
        return self.stopping or (distributed.world_size() == 1 and self.wish.stop)

    def _begin(self, journal: Journal, damaged: list[int]) -> None:
        if self.progress.step:
            return self.checkpoints.begin(journal, damaged)
        fused = self.gradients.first_loss() if isinstance(self.gradients, fused_step.FusedStep) else None
        check_head(self.model, pack.collate(self.job.train[:1], self.job.pad), fused)
        self.checkpoints.begin(journal, damaged)
        self._validate(journal)

    def _prepare(self, journal: Journal) -> None:
        """Records the steps still to come, where the gradients are made by graphs."""
        while isinstance(self.gradients, fused_step.FusedStep) and not self.progress.ended:
            try:
                left = self.plan[self.progress.step :]
                return self.gradients.prepare([distributed.local_rows(rows, self.lengths) for rows in left])
            except torch.OutOfMemoryError:
                self._shrink([], journal)

    def _step(self, journal: Journal) -> None:
        began = time.perf_counter()
        progress, rows = self.progress, self.plan[self.progress.step]
        share = learning_rate_factor(progress.step, len(self.plan), self.settings.warmup, self.schedule)
        rate = self.settings.learning_rate * share
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
        self._draw_apart()
        loss, norm, tokens, learnt = self._finite_gradients(rows, journal)
        self.optimizer.step()
        self.gradients.updated()
        self.gradients.clear()
        progress.step += 1
        progress.tokens += tokens
        seconds = time.perf_counter() - began
        progress.seconds += seconds
        progress.ended = progress.step >= len(self.plan)
        values = step_event(progress, len(self.plan), self.settings.epochs, seconds, tokens)
        journal.tell("step", progress.step, loss=loss, rate=rate, grad_norm=norm, learnt=learnt, **values)

    def _finite_gradients(self, rows: Sequence[int], journal: Journal) -> tuple[float, float, int, int]:
        """Leaves the clipped gradient; returns loss, gradient norm, tokens and learnt tokens.

        An overflow of the scaled float16 gradient repeats the step at half the scale, so that no step is lost.
        Raises TrainingDiverged when loss or gradient are no numbers.
        """
        while True:
            loss, tokens, learnt = self._gradients(rows, journal)
            norm = self._clip()
            if math.isfinite(loss) and math.isfinite(norm):
                return loss, norm, tokens, learnt
            self.gradients.clear()
            self.checkpoints.overflowed(loss, norm, journal)

    def _gradients(self, rows: Sequence[int], journal: Journal) -> tuple[float, int, int]:
        """Leaves the gradient of the mean loss over the step's learnt tokens, whatever the micro-batches are."""
        scale = self.progress.scale if self.job.precision == "float16" else 1.0
        mine = distributed.local_rows(rows, self.lengths)
        of = sum(self.loss_tokens[row] for row in rows) if self.loss_tokens else None
        while True:
            try:
                found = self.gradients.step(mine, scale, of)
                break
            except torch.OutOfMemoryError:
                self._shrink(mine, journal)
        self.own_tokens += found[1]
        numbers = [*found, float(self.wish.stop)]
        loss, tokens, learnt, stop = distributed.all_reduce_sum(
            list(self.gradients.trained.values()), numbers, self.model.device
        )
        self.stopping = stop > 0
        return loss, int(tokens), int(learnt)

    def _draw_apart(self) -> None:
        """Gives all processes but the first random numbers of their own, which depend on the step alone."""
        if distributed.rank() and self.job.adapter.dropout:
            name = f"{self.job.seed}/{distributed.rank()}/{self.progress.step}"
            torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1)

    def _shrink(self, rows: Sequence[int], journal: Journal) -> None:
        if autograd_step.sharded(self.job):  # the others wait in the middle of a layer
            raise ResourceError(
                "out of memory, and a sharded base's micro-batches cannot become smaller on one card alone",
                where=str(self.job.folder),
                next="Set train.memory to less, or prompt.max_tokens, and give the same command again: it goes on",
            )
        self.progress.micro_tokens = self.gradients.shrink(rows)
        text = f"out of memory: micro-batches now hold {self.progress.micro_tokens} tokens, the step is the same"
        journal.tell("note", self.progress.step, text=text)

    def _clip(self) -> float:
        trained = list(self.gradients.trained.values())
        if self.job.precision == "float16":
            for parameter in trained:
                if parameter.grad is not None:
                    parameter.grad /= self.progress.scale
        return float(torch.nn.utils.clip_grad_norm_(trained, self.settings.clip))

    def _padding(self) -> float:
        """The share of padding in what this process sent through the model."""
        return 1 - self.own_tokens / self.gradients.spent if self.gradients.spent else 0.0

    # --- validation, checkpoints ----------------------------------------------------------------------------

    def _validate(self, journal: Journal) -> None:
        progress = self.progress
        if not self.job.valid:
            progress.best_step = progress.step
            return
        mine = distributed.local_rows(range(len(self.job.valid)), [len(example) for example in self.job.valid])
        total, learnt = distributed.all_reduce_sum([], self.gradients.validation(mine), self.model.device)
        score = self._score() if progress.step else None
        values: dict[str, Any] = {} if score is None else {"score": score}
        if self.job.sampler is not None:
            values["samples"] = self._written(self.job.sampler)
        if self.checkpoints.validated(total / learnt, journal, **values):
            self.checkpoints.save(journal)

    def _score(self) -> float | None:
        """How good the replies are, where the recipe chooses by that; all processes get the first one's number."""
        scorer = self.job.scorer
        if scorer is None:
            return None
        return self._written(scorer)

    def _written(self, by: Callable[[Any], T]) -> T:
        """What comes of replies written now; all processes get the first one's."""
        fused = self.gradients.fused if isinstance(self.gradients, fused_step.FusedStep) else None
        return distributed.broadcast_object(lambda: by(fused))

    def _end(self, journal: Journal) -> Outcome:
        if self.checkpoints.restore_best():
            self.gradients.updated()
        config, tensors = adapter_state(self.model)
        summary = {**self.checkpoints.summary(), "padding": round(self._padding(), 4)}
        journal.tell("end", self.progress.step, **summary)
        return Outcome(dict(tensors), config, summary, self.trained)
