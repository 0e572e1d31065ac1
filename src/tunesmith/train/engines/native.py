"""Our training loop. Killed at any moment, the same call goes on and ends with the same adapter."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from tunesmith.errors import Paused, ResourceError, RunError, TrainingDiverged
from tunesmith.find import find
from tunesmith.model.adapter import finished
from tunesmith.model.build import add_adapter
from tunesmith.model.fuse import reasons
from tunesmith.model.shape import check_trained
from tunesmith.prompt import pack
from tunesmith.run import first
from tunesmith.train import by_autograd, by_hand, checkpoint, spread
from tunesmith.train.groups import groups
from tunesmith.train.job import Job, Outcome
from tunesmith.train.journal import Journal, opened
from tunesmith.train.loss import check_head
from tunesmith.train.rate import factor
from tunesmith.train.stop import Wish, listening

T = TypeVar("T")
Gradients: TypeAlias = by_autograd.Gradients | by_hand.Gradients
SAVE_SECONDS = 120.0  # a kill costs no more than this, however slow the steps are


@dataclass
class Progress:
    """Where a run is. Kept in each checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    best_score: float = -math.inf  # 0 where the loss alone decides
    waited: int = 0  # validations since the best
    micro_tokens: int = 0
    scale: float = 65536.0  # of the loss, for float16 only
    ended: bool = False


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
        fused = bool(job.layout.forms) and not reasons(job.model)
        self.gradients: Gradients = (by_hand if fused else by_autograd).Gradients(job, job.micro_tokens)
        make = find("tunesmith.train.optimizers", self.settings.optimizer.name)
        self.optimizer: torch.optim.Optimizer = make(
            groups(self.gradients.trained, self.settings.learning_rate, job.adapter.rate_ratio),
            self.settings.learning_rate,
            self.settings.weight_decay,
            **self.settings.optimizer.options,
        )
        self.peaks = [group["peak"] for group in self.optimizer.param_groups]
        self.schedule = find("tunesmith.train.schedules", self.settings.schedule.name)
        self.plan = [
            rows
            for epoch in range(self.settings.epochs)
            for rows in pack.steps([len(example) for example in job.train], self.settings.batch, job.seed, epoch)
        ]
        self.lengths = [len(example) for example in job.train]
        self.learnt = [sum(example.learnt[1:]) for example in job.train] if spread.size() > 1 else []
        self.progress = Progress(micro_tokens=job.micro_tokens)
        self.wish = Wish()
        self.own_tokens = 0
        self.stopping = False  # any process's wish, at the last step
        self.saved = time.monotonic()
        torch.manual_seed(job.seed)

    # --- the loop -------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        damaged = self._resume()
        self._level()
        with self._journal() as journal:
            self._begin(journal, damaged)
            self._prepare(journal)
            with listening() as self.wish:
                while not self.progress.ended:
                    self._step(journal)
                    if self._due(self.settings.evaluate_every) or self.progress.ended:
                        self._validate(journal)
                    if self._saving_is_due() or self.progress.ended:
                        self._save(journal)
                    if self._stops() and not self.progress.ended:
                        self._save(journal)
                        spread.wait()  # whoever ends first ends the others
                        raise Paused(
                            f"stopped after step {self.progress.step} of {len(self.plan)}; everything is kept",
                            where=str(self.job.folder),
                            next="Give the same command again to go on",
                        )
            return self._end(journal)

    @contextlib.contextmanager
    def _journal(self) -> Iterator[Journal]:
        job = self.job
        if not first():
            yield spread.Silent()
            return
        files = job.folder / "journal.jsonl", job.folder / "tensorboard"
        with opened(*files, job.watcher, from_step=self.progress.step) as journal:
            yield journal

    def _level(self) -> None:
        """All processes begin with the first one's numbers: a decomposition on another card may differ in a bit."""
        step = self.progress.step
        if (spread.most(step), spread.most(-step)) != (step, -step):
            raise RunError(
                "the processes found different checkpoints",
                where=str(self.folder),
                next="All processes must see the same folder of runs",
            )
        starts = [part for layer in self.model.lora.values() for part in (layer.start_A, layer.start_B)]
        spread.same([*self.gradients.trained.values(), *(part for part in starts if part is not None)])
        self.gradients.updated()

    def _stops(self) -> bool:
        return self.stopping or (spread.size() == 1 and self.wish.stop)

    def _begin(self, journal: Journal, damaged: list[int]) -> None:
        for step in damaged:
            journal.tell("note", self.progress.step, text=f"checkpoint {step} is damaged and was passed over")
        total = {"total": len(self.plan), "epochs": self.settings.epochs}
        if self.progress.step:
            journal.tell("resume", self.progress.step, **total)
            return
        fused = self.gradients.first_loss() if isinstance(self.gradients, by_hand.Gradients) else None
        check_head(self.model, pack.collate(self.job.train[:1], self.job.pad), fused)
        journal.tell(
            "start", 0, **total, rows=len(self.job.train), trained=sum(p.numel() for p in self.parameters.values())
        )
        self._validate(journal)

    def _prepare(self, journal: Journal) -> None:
        """Records the steps still to come, where the gradients are made by graphs."""
        while isinstance(self.gradients, by_hand.Gradients) and not self.progress.ended:
            try:
                left = self.plan[self.progress.step :]
                return self.gradients.prepare([spread.own(rows, self.lengths) for rows in left])
            except torch.OutOfMemoryError:
                self._shrink([], journal)

    def _step(self, journal: Journal) -> None:
        began = time.perf_counter()
        progress, rows = self.progress, self.plan[self.progress.step]
        share = factor(progress.step, len(self.plan), self.settings.warmup, self.schedule)
        rate = self.settings.learning_rate * share
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
        self._draw_apart()
        loss, tokens, learnt = self._gradients(rows, journal)
        norm = self._clip()
        if not math.isfinite(loss) or not math.isfinite(norm):
            if self.job.precision == "float16" and math.isfinite(loss) and progress.scale > 1:
                progress.scale /= 2  # an overflow in the scaled gradient: this step is skipped
                journal.tell("note", progress.step + 1, text=f"gradient overflow; loss scale is now {progress.scale:g}")
            else:
                raise TrainingDiverged(
                    f"the loss is {loss:g} and the gradient's norm {norm:g} at step {progress.step + 1}",
                    where=str(self.job.folder),
                    next="Lower train.learning_rate, or set train.precision to float32; the last checkpoint is kept",
                )
        else:
            self.optimizer.step()
            self.gradients.updated()
        self.gradients.clear()
        progress.step += 1
        progress.tokens += tokens
        seconds = time.perf_counter() - began
        progress.seconds += seconds
        progress.ended = progress.step >= len(self.plan)
        journal.tell(
            "step",
            progress.step,
            total=len(self.plan),
            epoch=round(self.settings.epochs * progress.step / len(self.plan), 3),
            loss=loss,
            rate=rate,
            grad_norm=norm,
            tokens=tokens,
            learnt=learnt,
            tokens_per_second=round(tokens / seconds, 1),
            eta=round(progress.seconds / progress.step * (len(self.plan) - progress.step), 1),
        )

    def _gradients(self, rows: Sequence[int], journal: Journal) -> tuple[float, int, int]:
        """Leaves the gradient of the mean loss over the step's learnt tokens, whatever the micro-batches are."""
        scale = self.progress.scale if self.job.precision == "float16" else 1.0
        mine = spread.own(rows, self.lengths)
        of = sum(self.learnt[row] for row in rows) if self.learnt else None
        while True:
            try:
                found = self.gradients.step(mine, scale, of)
                break
            except torch.OutOfMemoryError:
                self._shrink(mine, journal)
        self.own_tokens += found[1]
        numbers = [*found, float(self.wish.stop)]
        loss, tokens, learnt, stop = spread.add_up(list(self.gradients.trained.values()), numbers, self.model.device)
        self.stopping = stop > 0
        return loss, int(tokens), int(learnt)

    def _draw_apart(self) -> None:
        """Gives all processes but the first random numbers of their own, which depend on the step alone."""
        if spread.rank() and self.job.adapter.dropout:
            name = f"{self.job.seed}/{spread.rank()}/{self.progress.step}"
            torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1)

    def _shrink(self, rows: Sequence[int], journal: Journal) -> None:
        if by_autograd.sharded(self.job):  # the others wait in the middle of a layer
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

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0

    def _saving_is_due(self) -> bool:
        late = time.monotonic() - self.saved > SAVE_SECONDS
        return late or self._due(self.settings.checkpoint_every or self.settings.evaluate_every)

    # --- validation, checkpoints ----------------------------------------------------------------------------

    def _validate(self, journal: Journal) -> None:
        progress = self.progress
        if not self.job.valid:
            progress.best_step = progress.step
            return
        mine = spread.own(range(len(self.job.valid)), [len(example) for example in self.job.valid])
        total, learnt = spread.add_up([], self.gradients.validation(mine), self.model.device)
        loss = total / learnt
        score = self._score() if progress.step else None
        told: dict[str, Any] = {} if score is None else {"score": score}
        if self.job.sampler is not None:
            told["samples"] = self._written(self.job.sampler)
        journal.tell("valid", progress.step, loss=loss, **told)
        if not progress.step:
            return  # the base's own loss is where the curve starts, not a candidate
        if (-(score or 0.0), loss) < (-progress.best_score, progress.best_loss):
            progress.best_score, progress.best_loss = score or 0.0, loss
            progress.best_step, progress.waited = progress.step, 0
            if not self._saving_is_due():
                self._save(journal)
            return
        progress.waited += 1
        if self.settings.patience and progress.waited >= self.settings.patience and not progress.ended:
            progress.ended = True
            journal.tell("note", progress.step, text=f"nothing better in {progress.waited} validations: stopped early")

    def _score(self) -> float | None:
        """How good the replies are, where the recipe chooses by that; all processes get the first one's number."""
        scorer = self.job.scorer
        if scorer is None:
            return None
        return self._written(scorer)

    def _written(self, by: Callable[[Any], T]) -> T:
        """What comes of replies written now; all processes get the first one's."""
        fused = self.gradients.fused if isinstance(self.gradients, by_hand.Gradients) else None
        return spread.from_first(lambda: by(fused))

    def _save(self, journal: Journal) -> None:
        if not first() or self.progress.step in checkpoint.steps(self.folder)[:1]:
            return
        tensors: dict[str, Tensor] = {f"adapter.{name}": value.data for name, value in self.parameters.items()}
        optimizer, plain = checkpoint.pack_optimizer(self.optimizer)
        state = {"progress": asdict(self.progress), "optimizer": plain, "fingerprint": self.job.fingerprint}
        checkpoint.save(self.folder, self.progress.step, tensors | optimizer | checkpoint.random_state(), state)
        checkpoint.prune(self.folder, self.settings.keep, self.progress.best_step)
        self.saved = time.monotonic()
        journal.tell("saved", self.progress.step)

    def _resume(self) -> list[int]:
        found, damaged = checkpoint.newest(self.folder)
        if found is None:
            return damaged
        if found.state["fingerprint"] != self.job.fingerprint:
            raise RunError(
                "the checkpoints were made from other data, settings or weights",
                where=str(self.folder),
                next="Undo the change, or give --again to begin anew (the old run is kept aside)",
            )
        _fill(self.parameters, found.tensors)
        checkpoint.unpack_optimizer(self.optimizer, found.tensors, found.state["optimizer"])
        checkpoint.set_random_state(found.tensors)
        self.progress = Progress(**found.state["progress"])
        self.progress.micro_tokens = min(self.progress.micro_tokens, self.job.micro_tokens)
        self.gradients.micro_tokens = self.progress.micro_tokens
        self.gradients.updated()
        return damaged

    def _end(self, journal: Journal) -> Outcome:
        progress = self.progress
        if progress.best_step and progress.best_step != progress.step:
            best = checkpoint.load(self.folder, progress.best_step)
            if best is None:
                raise RunError(f"the best checkpoint ({progress.best_step}) is damaged", where=str(self.folder))
            _fill(self.parameters, best.tensors)
            self.gradients.updated()
        config, tensors = finished(self.model)
        summary = {
            "steps": progress.step,
            "best_step": progress.best_step,
            "best_loss": progress.best_loss if math.isfinite(progress.best_loss) else None,
            **({} if self.job.scorer is None else {"best_score": progress.best_score}),
            "tokens": progress.tokens,
            "padding": round(self._padding(), 4),
            "seconds": round(progress.seconds, 1),
        }
        journal.tell("end", progress.step, **summary)
        return Outcome(dict(tensors), config, summary, self.trained)


def _fill(parameters: dict[str, torch.nn.Parameter], tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"adapter.{name}"])
