"""Both engines make the same steps: rows, tokens with loss, rates, losses, validation, best checkpoint, resuming."""

from __future__ import annotations

import functools
import json
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTTrainer

import tunesmith
from stopping import at, crash, interrupt
from tunesmith.config.recipe import read_recipe
from tunesmith.config.registry import resolve
from tunesmith.errors import Paused, RecipeError, ResourceError, TrainingDiverged
from tunesmith.prompt import pack
from tunesmith.prompt.tokens import Example
from tunesmith.runs.run import Run, hash_file
from tunesmith.training import autograd_step, checkpoint, progress
from tunesmith.training.engines import trl
from tunesmith.training.job import read_journal
from tunesmith.training.schedules import learning_rate_factor

ENGINES = ["native", "trl"]


def rows(count: int = 29) -> list[dict[str, str]]:
    """Answers of very different lengths: a mean over rows or micro-batches is not the mean over tokens."""
    return [
        {
            "topic": f"t{n % 4}",
            "prompt": f"how to do {n}?",
            "completion": "Tap Save. " * (1 + 7 * (n % 3)) + f"Open {n}.",
        }
        for n in range(count)
    ]


@pytest.fixture
def uneven(recipe_file: Callable[..., Path], rows_file: Path) -> Callable[..., Path]:
    """uneven(**changes) -> a recipe of few steps whose epochs do not divide into whole batches."""

    def write(**changes: Any) -> Path:
        rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows()))
        settings = {
            "data__split": {"by": "rows", "test": 0.1, "valid": 0.15, "together": None},
            "prompt__max_tokens": 512,
            "train__batch": "8 rows",
            "train__learning_rate": 3e-3,
            "train__evaluate_every": 2,
            **changes,
        }
        return recipe_file(**settings)

    return write


def prepared(path: Path, folder: Path) -> tuple[Any, Run]:
    recipe = read_recipe(str(path))
    run = tunesmith.open_run(recipe, folder)
    tunesmith.prepare(recipe, run)
    return recipe, run


def trained(path: Path, folder: Path) -> Run:
    recipe, run = prepared(path, folder)
    tunesmith.train(recipe, run)
    return run


def events(run: Run, kind: str, key: str) -> list[Any]:
    return [event[key] for event in read_journal(run / "journal.jsonl") if event["kind"] == kind]


def adapter_hash(run: Run) -> str:
    return hash_file(run / "adapter/adapter_model.safetensors")


# --- rates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 0.05, 0.5, 1, 2, 100])
@pytest.mark.parametrize("total", [1, 2, 6, 40])
def test_the_rate_of_each_step(schedule: str, warmup: float, total: int) -> None:
    warm = min(total, math.ceil(warmup * total) if warmup < 1 else int(warmup))
    curves: dict[str, Callable[[float], float]] = {
        "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
        "linear": lambda x: 1 - x,
        "constant": lambda x: 1.0,
    }
    fall = curves[schedule]
    expected = [(k + 1) / warm if k < warm else fall((k - warm) / (total - warm)) for k in range(total)]
    curve = resolve("tunesmith.training.schedules", schedule)
    assert [learning_rate_factor(step, total, warmup, curve) for step in range(total)] == pytest.approx(
        expected, rel=1e-12
    )
    assert min(expected) > 0
    assert max(expected) == 1


@pytest.mark.parametrize(
    ("schedule", "warmup", "epochs"),
    [
        ("cosine", 0.05, 2),
        ("linear", 2, 2),
        pytest.param("constant", 0.4, 2, marks=pytest.mark.slow),
        pytest.param("cosine", 3, 1, marks=pytest.mark.slow),
        pytest.param("cosine", 0.05, 1, marks=pytest.mark.slow),
    ],
)
def test_engines_agree_step_by_step(
    uneven: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    schedule: str,
    warmup: float,
    epochs: int,
) -> None:
    """Clipping, weight decay, LoRA+, several micro-batches a step and an uneven last step of each epoch are in it."""
    monkeypatch.setitem(autograd_step.OVERHEAD, "cpu", 0)  # a step is cut wherever lengths differ
    settings = {
        "train__schedule": schedule,
        "train__warmup": warmup,
        "train__epochs": epochs,
        "train__clip": 0.3,
        "train__weight_decay": 0.1,
        "adapter__rate_ratio": 4,
    }
    one = trained(uneven(**settings), tmp_path / "native")
    two = trained(uneven(**settings, train__engine="trl"), tmp_path / "trl")
    for key in ("step", "total", "epoch", "tokens", "learnt"):
        assert events(two, "step", key) == events(one, "step", key)
    assert events(two, "step", "rate") == pytest.approx(events(one, "step", "rate"), rel=1e-9)
    assert min(events(two, "step", "rate")) > 0
    assert events(two, "step", "loss") == pytest.approx(events(one, "step", "loss"), abs=1e-4)
    assert events(two, "step", "grad_norm") == pytest.approx(events(one, "step", "grad_norm"), rel=1e-3)
    assert events(two, "valid", "step") == events(one, "valid", "step")
    assert events(two, "valid", "loss") == pytest.approx(events(one, "valid", "loss"), abs=1e-4)
    assert max(events(one, "step", "grad_norm")) > 0.3  # clipping took place
    assert len(set(events(one, "step", "learnt"))) > 1


def test_a_run_of_one_step_is_at_the_peak(uneven: Callable[..., Path], tmp_path: Path) -> None:
    runs = [trained(uneven(train__batch="64 rows", train__engine=e, train__epochs=1), tmp_path / e) for e in ENGINES]
    assert [events(run, "step", "rate") for run in runs] == [[3e-3], [3e-3]]
    losses = [events(run, "valid", "loss") for run in runs]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert losses[0][1] < losses[0][0]  # the one step learned


def test_batches_in_tokens_and_dropout_agree(uneven: Callable[..., Path], tmp_path: Path) -> None:
    settings = {"train__batch": "600 tokens", "adapter__dropout": 0.2}
    one, two = (trained(uneven(**settings, train__engine=engine), tmp_path / engine) for engine in ENGINES)
    assert events(two, "step", "tokens") == events(one, "step", "tokens")
    assert len(set(events(one, "step", "tokens"))) > 1
    assert events(two, "step", "loss") == pytest.approx(events(one, "step", "loss"), abs=1e-4)


@pytest.mark.parametrize("family", ["gemma2", pytest.param("phi3", marks=pytest.mark.slow), "gpt2"])
def test_engines_agree_for_other_families(
    uneven: Callable[..., Path], tiny: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    """Capped logits, a joined projection, and a family that autograd trains; everything said is learned."""
    without = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if family == "gpt2" else {}
    settings = {"base__model": str(tiny(family, **without)), "prompt__learn": "everything", "train__epochs": 1}
    one, two = (trained(uneven(**settings, train__engine=engine), tmp_path / engine) for engine in ENGINES)
    for kind in ("step", "valid"):
        assert events(two, kind, "loss") == pytest.approx(events(one, kind, "loss"), abs=1e-4), kind


@pytest.mark.parametrize("also", [[], ["embeddings", "head"]])
def test_engines_agree_in_bfloat16(uneven: Callable[..., Path], tmp_path: Path, also: list[str]) -> None:
    """SFTTrainer's own autocast would round the update itself to 16 bits."""
    settings = {"train__precision": "bfloat16", "adapter__train_also": also, "train__learning_rate": 1e-3}
    one, two = (trained(uneven(**settings, train__engine=engine), tmp_path / engine) for engine in ENGINES)
    for kind in ("step", "valid"):
        assert events(two, kind, "loss") == pytest.approx(events(one, kind, "loss"), abs=4e-3), kind


@pytest.mark.parametrize("engine", ENGINES)
def test_a_warm_up_longer_than_the_run_is_said(uneven: Callable[..., Path], tmp_path: Path, engine: str) -> None:
    run = trained(uneven(train__warmup=50, train__epochs=1, train__engine=engine), tmp_path)
    assert "train.warmup is 50 steps but the run has 3" in events(run, "note", "text")[0]
    assert events(run, "step", "rate") == pytest.approx([1e-3, 2e-3, 3e-3])


# --- tokens with loss -----------------------------------------------------------------------------------------


def test_trl_has_the_native_engines_labels() -> None:
    examples = [
        Example("a", tuple(range(10, 17)), (False, False, True, True, False, True, True), 16),
        Example("b", (20, 21, 22), (True, False, True), 22),
        Example("c", tuple(range(30, 42)), (False,) * 9 + (True,) * 3, 41),
    ]
    found = trl._dataset(examples)
    wanted = pack.collate(examples, 0)
    for place, example in enumerate(examples):
        assert found[place]["input_ids"] == wanted.ids[place][: len(example)]
        assert found[place]["labels"] == wanted.labels[place][: len(example)]


def test_trl_trains_on_the_native_engines_batches(
    uneven: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reaches SFTTrainer's loss, row by row: ids, labels and the number of tokens that the mean is over."""
    seen: list[tuple[list[list[int]], list[list[int]], int]] = []
    real = SFTTrainer.compute_loss

    def compute_loss(
        self: Any, model: Any, inputs: Any, *rest: Any, num_items_in_batch: Any = None, **more: Any
    ) -> Any:
        seen.append((inputs["input_ids"].tolist(), inputs["labels"].tolist(), int(num_items_in_batch)))
        return real(self, model, inputs, *rest, num_items_in_batch=num_items_in_batch, **more)

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)
    batches: list[pack.Batch] = []
    loss = autograd_step.sum_cross_entropy

    def sum_cross_entropy(model: Any, batch: pack.Batch) -> torch.Tensor:
        batches.extend([batch] if torch.is_grad_enabled() else [])  # validations apart
        return loss(model, batch)

    monkeypatch.setattr(autograd_step, "sum_cross_entropy", sum_cross_entropy)
    monkeypatch.setitem(autograd_step.OVERHEAD, "cpu", 0)
    trained(uneven(train__engine="trl"), tmp_path / "trl")
    native = trained(uneven(adapter__dropout=1e-9), tmp_path / "native")  # by autograd
    assert [(ids, labels) for ids, labels, _ in seen] == [(batch.ids, batch.labels) for batch in batches]
    steps = len(events(native, "step", "step"))
    assert len(batches) > steps == 6
    assert sum(batch.loss_tokens / count for batch, (*_, count) in zip(batches, seen, strict=True)) == pytest.approx(
        steps
    )


# --- best checkpoint, patience, resuming ----------------------------------------------------------------------


def test_engines_choose_the_same_checkpoint_and_stop_at_the_same_time(
    uneven: Callable[..., Path], tmp_path: Path
) -> None:
    settings = {"train__learning_rate": 0.1, "train__epochs": 30, "train__patience": 2}
    one, two = (trained(uneven(**settings, train__engine=engine), tmp_path / engine) for engine in ENGINES)
    for run in (one, two):
        summary = (run.read_fingerprints("train") or {})["summary"]
        valid = dict(zip(events(run, "valid", "step")[1:], events(run, "valid", "loss")[1:], strict=True))
        assert summary["best_step"] == min(valid, key=lambda step: valid[step])
        assert summary["steps"] < 90
        assert summary["best_step"] in checkpoint.steps(run / "checkpoints")
        assert len(checkpoint.steps(run / "checkpoints")) <= 3
        assert "no improvement in 2 validations" in events(run, "note", "text")[0]


@pytest.mark.parametrize("how", ["killed", "stopped", "damaged"])
def test_a_resumed_trl_run_is_the_uninterrupted_one(uneven: Callable[..., Path], tmp_path: Path, how: str) -> None:
    path = uneven(train__engine="trl", adapter__dropout=0.1, train__epochs=3, train__keep=9)
    whole = trained(path, tmp_path / "whole")
    recipe, run = prepared(path, tmp_path / "run")
    if how == "stopped":
        with pytest.raises(Paused, match=r"stopped after step 5 of 9; everything is kept"):
            tunesmith.train(recipe, run, watch=at("step", 5, interrupt))
    else:
        with pytest.raises(KeyboardInterrupt):
            tunesmith.train(recipe, run, watch=at("step", 5, crash))
    if how == "damaged":
        newest = run / "checkpoints/step-0000004/tensors.safetensors"
        newest.write_bytes(newest.read_bytes()[:-10])
    tunesmith.train(recipe, run)
    assert events(run, "resume", "step") == [{"killed": 4, "stopped": 5, "damaged": 2}[how]]
    assert adapter_hash(run) == adapter_hash(whole)
    for kind, key in (("step", "rate"), ("step", "loss"), ("valid", "loss")):
        assert events(run, kind, key) == events(whole, kind, key)


def test_trl_is_saved_by_the_clock(
    uneven: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trl, "SAVE_SECONDS", 0.0)
    run = trained(uneven(train__engine="trl", train__evaluate_every=100, train__keep=100), tmp_path)
    assert checkpoint.steps(run / "checkpoints") == [6, 5, 4, 3, 2, 1]


# --- losses and gradients that are no numbers -----------------------------------------------------------------


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_trl_stops_before_a_step_that_is_no_number(
    uneven: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    path = uneven(train__engine="trl")
    whole = trained(path, tmp_path / "whole")
    recipe, run = prepared(path, tmp_path / "run")
    real = SFTTrainer.compute_loss

    def compute_loss(self: Any, model: Any, *rest: Any, **more: Any) -> Any:
        loss = real(self, model, *rest, **more)
        if self.loop.checkpoints.progress.step != 4:
            return loss
        trained = next(p for p in model.parameters() if p.requires_grad)
        return loss * math.nan if what == "loss" else loss + (trained * 0).sqrt().sum()

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)
    said = r"the loss is nan" if what == "loss" else r"the gradient's norm nan"
    with pytest.raises(TrainingDiverged, match=rf"{said}.* at step 5.*learning_rate.*checkpoint 4 is kept"):
        tunesmith.train(recipe, run)
    assert checkpoint.steps(run / "checkpoints") == [4, 2]
    kept = checkpoint.load(run / "checkpoints", 4)
    assert kept is not None
    assert all(bool(t.isfinite().all()) for t in kept.tensors.values() if t.is_floating_point())
    monkeypatch.undo()
    tunesmith.train(recipe, run)
    assert adapter_hash(run) == adapter_hash(whole)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_validation_that_is_no_number_ends_the_run(
    uneven: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    recipe, run = prepared(uneven(train__engine=engine, adapter__dropout=0.1), tmp_path)
    real = autograd_step.validation_loss
    calls = iter(range(100))

    def validation_loss(job: Any, micro_tokens: int, rows: Any) -> tuple[float, int]:
        total, learnt = real(job, micro_tokens, rows)
        return (math.inf if next(calls) == 2 else total), learnt

    monkeypatch.setattr(trl if engine == "trl" else autograd_step, "validation_loss", validation_loss)
    with pytest.raises(TrainingDiverged, match=r"validation loss is inf after step 4.*checkpoint 2 is kept"):
        tunesmith.train(recipe, run)
    assert checkpoint.steps(run / "checkpoints") == [2]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_overflow_in_float16_costs_no_step(
    uneven: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """float16 on the processor, which a recipe may not ask for, goes through the same loop as on a GPU."""
    from dataclasses import replace

    from tunesmith import hardware

    machine = replace(hardware.detect_hardware("float32"), precision="float16")
    monkeypatch.setattr(hardware, "detect_hardware", lambda precision="auto": machine)
    monkeypatch.setattr(progress, "Progress", functools.partial(progress.Progress, scale=2.0**24))
    settings = {"adapter__dropout": 1e-9, "train__epochs": 1}
    run = trained(uneven(**settings, train__precision="auto", train__engine=engine), tmp_path / "half")
    notes = events(run, "note", "text")
    assert notes and all(note.startswith("gradient overflow at step 1;") for note in notes)
    monkeypatch.undo()
    exact = trained(uneven(**settings), tmp_path / "single")
    assert events(run, "step", "loss") == pytest.approx(events(exact, "step", "loss"), abs=0.02)
    state = json.loads((run / "checkpoints/step-0000003/state.json").read_text())
    assert state["progress"]["scale"] == 2.0 ** (24 - len(notes))


# --- errors at the end ----------------------------------------------------------------------------------------


def limit(size: int) -> None:
    """From now on this process writes no larger file: the system's own error for a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def unlimited() -> Any:
    yield
    limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_disk_that_is_full_at_the_end_costs_nothing(
    uneven: Callable[..., Path], tmp_path: Path, engine: str, optimizer: str
) -> None:
    path = uneven(train__engine=engine, train__optimizer=optimizer, train__evaluate_every=50, adapter__rank=64)
    whole = trained(path, tmp_path / "whole")
    recipe, run = prepared(path, tmp_path / "run")
    with pytest.raises(ResourceError, match=r"disk is full; finished work is kept.*the same command again"):
        tunesmith.train(recipe, run, watch=at("end", 0, lambda: limit(20_000)))
    assert not (run / "adapter").exists()
    assert checkpoint.steps(run / "checkpoints") == [6]
    limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    tunesmith.train(recipe, run)
    assert events(run, "step", "step") == [1, 2, 3, 4, 5, 6]
    assert adapter_hash(run) == adapter_hash(whole)


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_disk_without_room_is_known_after_the_first_step(
    uneven: Callable[..., Path], tmp_path: Path, engine: str
) -> None:
    recipe, run = prepared(uneven(train__engine=engine, train__evaluate_every=50), tmp_path)
    with pytest.raises(ResourceError, match="disk is full"):
        tunesmith.train(recipe, run, watch=at("step", 1, lambda: limit(20_000)))
    assert events(run, "step", "step") == [1]
    assert not list((run / "checkpoints").iterdir())


# --- what an engine cannot do ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"train__samples": 2}, "train.samples"),
        ({"train__best": "score", "evaluate__primary": "length"}, "train.best"),
        ({"train__parallel": "ddp"}, "train.engine"),
        ({"adapter__dora": True}, "adapter.dora"),
        ({"adapter__start": "pissa"}, "adapter.start"),
    ],
)
def test_what_trl_cannot_do_is_refused_before_the_model_is_fetched(
    uneven: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], where: str
) -> None:
    recipe, run = prepared(uneven(train__engine="trl", **changes), tmp_path)
    monkeypatch.setattr("tunesmith.commands.train.load_weights", lambda *_: pytest.fail("the base was fetched"))
    with pytest.raises(RecipeError, match="engine trl") as no:
        tunesmith.train(recipe, run)
    assert no.value.where == where


@pytest.mark.parametrize("changes", [{"train__patience": 2}, {"train__samples": 1}])
def test_settings_that_need_validation_rows_are_refused_without_them(
    uneven: Callable[..., Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    split = {"by": "rows", "test": 0.1, "valid": 0.0, "together": None}
    recipe, run = prepared(uneven(data__split=split, **changes), tmp_path)
    with pytest.raises(RecipeError, match="needs validation rows, but there are none"):
        tunesmith.train(recipe, run)
    assert not (run / "checkpoints").exists()
