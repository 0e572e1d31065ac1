"""Steps, progress, checkpoints and selection of the best checkpoint, shared by all engines."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import Paused, RunError, TrainingDiverged
from tunesmith.prompt import pack
from tunesmith.runs.run import is_main_process
from tunesmith.training import checkpoint
from tunesmith.training.checkpoint import Checkpoint
from tunesmith.training.job import Job, Journal
from tunesmith.training.schedules import warm_steps


@dataclass
class Progress:
    """Progress of a run, stored in each checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    best_score: float = -math.inf  # 0 if the loss alone decides
    waited: int = 0  # validations since the best
    micro_tokens: int = 0
    scale: float = 65536.0  # of the loss, for float16 only
    ended: bool = False


def plan_steps(job: Job) -> list[list[int]]:
    """Returns the rows of every optimizer step of the run, over all epochs."""
    lengths = [len(example) for example in job.train]
    epochs = range(job.settings.epochs)
    return [rows for epoch in epochs for rows in pack.epoch_steps(lengths, job.settings.batch, job.seed, epoch)]


class Checkpoints:
    """Progress and checkpoints of one run. The engine updates `progress`."""

    def __init__(
        self, job: Job, total: int, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        """Starts at step 0. `total` counts the run's optimizer steps; `parameters` are the trained ones."""
        self.job, self.settings, self.total = job, job.settings, total
        self._rehearsed = False
        self.parameters, self.optimizer = parameters, optimizer
        self.folder = job.folder / "checkpoints"
        self.progress = Progress(micro_tokens=job.micro_tokens)
        self.saved = time.monotonic()
        self._resumed: Checkpoint | None = None

    # --- resuming -------------------------------------------------------------------------------------------

    def resume(self) -> list[int]:
        """Restores parameters and progress from the newest intact checkpoint; returns the steps of damaged ones.

        Raises RunError if the checkpoints belong to another recipe, other rows or other weights.
        """
        newest, damaged = checkpoint.newest(self.folder)
        if newest is None:
            return damaged
        saved, current = newest.state.get("inputs"), self.job.inputs
        if saved is None:
            advice = "Give --again to start over (the old adapter is kept in old/)"
            raise RunError("the checkpoints were written by an older version", where=str(self.folder), next=advice)
        if changed := [name for name in sorted({*saved, *current}) if saved.get(name) != current.get(name)]:
            raise RunError(
                f"the checkpoints have other inputs: {', '.join(f'{name} changed' for name in changed)}",
                where=str(self.folder),
                next="Undo the change, or give --again to start over (the old adapter is kept in old/)",
            )
        self._fill(newest)
        self.progress = Progress(**newest.state["progress"])
        self.progress.micro_tokens = min(self.progress.micro_tokens, self.job.micro_tokens)
        self._resumed = newest
        return damaged

    def restore_optimizer(self) -> None:
        """Fills the optimizer and the random state from the checkpoint that `resume` read, if there was one."""
        if self._resumed is None:
            return
        checkpoint.unpack_optimizer(self.optimizer, self._resumed.tensors, self._resumed.state["optimizer"])
        checkpoint.set_random_state(self._resumed.tensors)
        self._resumed = None

    def begin(self, journal: Journal, damaged: list[int]) -> None:
        """Writes the journal's first events of this process."""
        step = self.progress.step
        for damaged_step in damaged:
            journal.tell("note", step, text=f"checkpoint {damaged_step} is damaged and was skipped")
        totals: dict[str, Any] = {"total": self.total, "epochs": self.settings.epochs}
        if step:
            journal.tell("resume", step, **totals)
            return
        trained = sum(parameter.numel() for parameter in self.parameters.values())
        journal.tell("start", 0, **totals, rows=len(self.job.train), trained=trained)
        if self.settings.warmup >= 1 and warm_steps(self.settings.warmup, self.total) < int(self.settings.warmup):
            text = f"train.warmup is {self.settings.warmup:g} steps but the run has {self.total}, so all are warm-up"
            journal.tell("note", 0, text=text)

    # --- validation -----------------------------------------------------------------------------------------

    def validation_is_due(self) -> bool:
        """Returns whether to validate after this step."""
        return self.progress.ended or self.progress.step % self.settings.evaluate_every == 0

    def validated(self, loss: float, journal: Journal, **values: Any) -> bool:
        """Records a validation and returns whether it is the best so far; a `score` in `values` outranks the loss.

        Ends the run after `patience` validations without improvement. Raises TrainingDiverged for a non-finite loss.
        """
        progress = self.progress
        if not math.isfinite(loss):
            raise self.diverged(f"the validation loss is {loss:g} after step {progress.step}")
        journal.tell("valid", progress.step, loss=loss, **values)
        if not progress.step:
            return False  # the base model's loss starts the curve but is not a candidate
        score = float(values.get("score") or 0.0)
        if (-score, loss) < (-progress.best_score, progress.best_loss):
            progress.best_score, progress.best_loss = score, loss
            progress.best_step, progress.waited = progress.step, 0
            return True
        progress.waited += 1
        if self.settings.patience and progress.waited >= self.settings.patience and not progress.ended:
            progress.ended = True
            journal.tell("note", progress.step, text=f"no improvement in {progress.waited} validations: stopped early")
        return False

    def overflowed(self, loss: float, norm: float, journal: Journal) -> None:
        """Halves the loss scale after a float16 gradient overflow, so that the engine can repeat the step.

        Raises TrainingDiverged for other dtypes, and if a smaller scale cannot help.
        """
        progress = self.progress
        if self.job.precision != "float16" or not math.isfinite(loss) or progress.scale <= 1:
            raise self.diverged(f"the loss is {loss:g} and the gradient's norm {norm:g} at step {progress.step + 1}")
        progress.scale /= 2
        text = f"gradient overflow at step {progress.step + 1}; the loss scale is now {progress.scale:g}"
        journal.tell("note", progress.step, text=text)

    def diverged(self, message: str) -> TrainingDiverged:
        """Returns the error for a loss or gradient that is not finite; it names the newest checkpoint."""
        newest = checkpoint.steps(self.folder)[:1]
        state = f"checkpoint {newest[0]} is kept" if newest else "no checkpoint had been written yet"
        return TrainingDiverged(
            message,
            where=str(self.job.folder),
            next=f"Lower train.learning_rate, or set train.precision to float32, and train with --again; {state}",
        )

    # --- saving ---------------------------------------------------------------------------------------------

    def saving_is_due(self, seconds: float) -> bool:
        """Returns whether to write a checkpoint after this step: by step number, or `seconds` after the last one."""
        interval = self.settings.checkpoint_every or self.settings.evaluate_every
        return self.progress.ended or time.monotonic() - self.saved > seconds or self.progress.step % interval == 0

    def save(self, journal: Journal) -> None:
        """Writes a checkpoint of this step unless it exists, and removes old ones except the best."""
        if not is_main_process() or self.progress.step in checkpoint.steps(self.folder)[:1]:
            return
        self.job.keeping()
        checkpoint.save(self.folder, self.progress.step, *self._contents())
        checkpoint.prune(self.folder, self.settings.keep, self.progress.best_step)
        self.saved = time.monotonic()
        journal.tell("saved", self.progress.step)

    def rehearse(self) -> None:
        """Writes and removes a trial checkpoint once, so that saving fails after the first step, not after the last.

        Raises ResourceError if the disk has no space for the run's checkpoints.
        """
        if self._rehearsed or self.progress.ended:
            return
        if is_main_process():
            checkpoint.rehearse(self.folder, *self._contents(), copies=self.settings.keep + 2)
        self._rehearsed = True

    def paused(self) -> Paused:
        """Returns the error for a run that the user stopped."""
        return Paused(
            f"stopped after step {self.progress.step} of {self.total}; everything is kept",
            where=str(self.job.folder),
            next="Run the same command again to resume",
        )

    def _contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {f"adapter.{name}": value.data for name, value in self.parameters.items()}
        optimizer, plain = checkpoint.pack_optimizer(self.optimizer)
        state = {"progress": asdict(self.progress), "optimizer": plain, "inputs": dict(self.job.inputs)}
        return tensors | optimizer | checkpoint.random_state(), state

    # --- the end --------------------------------------------------------------------------------------------

    def restore_best(self) -> bool:
        """Loads the best checkpoint's parameters; returns whether they changed. Raises RunError if it is damaged."""
        progress = self.progress
        if not progress.best_step or progress.best_step == progress.step:
            return False
        best = checkpoint.load(self.folder, progress.best_step)
        if best is None:
            raise RunError(
                f"the best checkpoint ({progress.best_step}) is damaged",
                where=str(self.folder),
                next="Restore it from a copy, or train again with --again",
            )
        self._fill(best)
        return True

    def summary(self) -> dict[str, Any]:
        """Returns a summary of the run for the journal and the run's record."""
        progress = self.progress
        return {
            "steps": progress.step,
            "best_step": progress.best_step or progress.step,
            "best_loss": progress.best_loss if math.isfinite(progress.best_loss) else None,
            **({} if self.job.scorer is None else {"best_score": progress.best_score}),
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 1),
        }

    def _fill(self, source: Checkpoint) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(source.tensors[f"adapter.{name}"])


def step_event(progress: Progress, total: int, epochs: int, seconds: float, tokens: int) -> dict[str, Any]:
    """Returns the values of a `step` event besides loss, rate and gradient norm."""
    return {
        "total": total,
        "epoch": round(epochs * progress.step / total, 3),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1),
        "eta": round(progress.seconds / progress.step * (total - progress.step), 1),
    }
