"""The whole pipeline on tiny models of every family, through the command line where a user would use it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tunesmith
from stopping import at, crash
from tiny import FAMILIES
from tunesmith.commands.serve import Wish, serving
from tunesmith.config.recipe import read_recipe
from tunesmith.errors import RunError
from tunesmith.runs.run import Run
from tunesmith.training.journal import read_journal

TUNESMITH = str(Path(sys.executable).with_name("tunesmith"))


def everything(path: Path, folder: Path) -> Run:
    recipe = read_recipe(str(path))
    run = tunesmith.open_run(recipe, folder)
    tunesmith.check(recipe)
    tunesmith.prepare(recipe, run)
    tunesmith.train(recipe, run)
    tunesmith.evaluate(recipe, run)
    tunesmith.report(recipe, run)
    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_is_compared(recipe_file: Callable[..., Path], tmp_path: Path, family: str) -> None:
    run = everything(recipe_file(family), tmp_path / "runs")
    losses = [event["loss"] for event in read_journal(run / "journal.jsonl") if event["kind"] == "step"]
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 0.3
    scores = run.read_json("scores.json")
    held = scores["sections"]["all"]["loss"]
    assert held["tuned"] < held["base"]
    assert held["verdict"] == "better"
    assert scores["verdict"].startswith("Tuning helped: loss went from")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Tuning helped" in page


def test_sixteen_bits_and_chosen_layers(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    run = everything(recipe_file(base__bits=16, adapter__layers=["q_proj", "v_proj"]), tmp_path / "runs")
    config = json.loads((run / "adapter/adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]


def test_recomputing_activations_changes_nothing(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    losses = []
    for choice in ("no", "yes"):
        recipe = read_recipe(str(recipe_file(train__recompute=choice, train__epochs=1)))
        run = tunesmith.open_run(recipe, tmp_path / choice)
        tunesmith.prepare(recipe, run)
        tunesmith.train(recipe, run)
        losses.append([e["loss"] for e in read_journal(run / "journal.jsonl") if e["kind"] == "step"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_trl_writes_the_same_products_and_goes_on(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    native = everything(recipe_file(name="native"), tmp_path / "runs")
    path = recipe_file(name="trl", train__engine="trl")
    recipe = read_recipe(str(path))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    tunesmith.prepare(recipe, run)

    with pytest.raises(KeyboardInterrupt):
        tunesmith.train(recipe, run, watch=at("step", 7, crash))
    everything(path, tmp_path / "runs")
    resumed = [e["step"] for e in read_journal(run / "journal.jsonl") if e["kind"] == "resume"]
    assert resumed == [5]

    def products(which: Run) -> set[str]:
        found = {p.relative_to(which.path).as_posix() for p in which.path.rglob("*") if p.is_file()}
        return {p for p in found if not p.startswith(("checkpoints/", "tensorboard/"))}

    assert products(run) == products(native)


def test_again_is_at_once_and_says_so(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe_file(train__epochs=1)
    run = everything(path, tmp_path / "runs")
    recipe = read_recipe(str(path))
    said: list[str] = []
    tunesmith.prepare(recipe, run, said.append)
    tunesmith.train(recipe, run, said.append)
    tunesmith.evaluate(recipe, run, said.append)
    tunesmith.report(recipe, run, said.append)
    assert [text.split(":")[1].split(",")[0].strip() for text in said] == ["fresh"] * 4


def test_tensorboard_shows_the_journal(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = everything(recipe_file(train__epochs=1), tmp_path / "runs")
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    for kind, tag in (("step", "training/loss"), ("valid", "valid/loss")):
        journal = [(e["step"], e["loss"]) for e in read_journal(run / "journal.jsonl") if e["kind"] == kind]
        shown = [(scalar.step, scalar.value) for scalar in board.Scalars(tag)]
        assert [step for step, _ in shown] == [step for step, _ in journal]
        assert [loss for _, loss in shown] == pytest.approx([loss for _, loss in journal], rel=1e-6)


def test_what_changed_is_said(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    run = everything(recipe_file(train__epochs=1), tmp_path / "runs")
    recipe = read_recipe(str(recipe_file(train__epochs=1, evaluate__rows=4)))
    said: list[str] = []
    tunesmith.evaluate(recipe, run, said.append)
    tunesmith.report(recipe, run, said.append)
    assert said[0] == "evaluate: made again, because evaluate changed"
    assert said[-2] == "report: made again, because scores changed"
    (run / "scores.json").write_text("{}")
    said.clear()
    tunesmith.evaluate(recipe, run, said.append)
    assert said[0] == "evaluate: made again, because scores.json was changed by hand or damaged"


def test_a_finished_run_is_measured_and_written_with_the_settings_of_its_training(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    path = recipe_file(prompt__template=str(template), train__epochs=1)
    run = everything(path, tmp_path / "runs")
    kept = (run / "recipe.yaml").read_text(encoding="utf-8")
    steps: list[Callable[..., object]] = [tunesmith.evaluate, tunesmith.report, tunesmith.export, tunesmith.card]
    for key, value in {
        "adapter.rank": 3,
        "train.learning_rate": 0.5,
        "data.split.test": 0.2,
        "prompt.system": "Be.",
    }.items():
        changed = read_recipe(str(path), settings={key: value})
        for step in steps:
            with pytest.raises(RunError, match=rf"trained with something else: {key.split('.')[0]}"):
                step(changed, run)
    tunesmith.report(read_recipe(str(path), settings={"data.max_dropped": 0.9}), run)  # no row depends on it
    template.write_text(template.read_text().replace("<|assistant|>", "<|helper|>"))
    for step in steps:
        with pytest.raises(RunError, match="trained with something else: prompt changed"):
            step(read_recipe(str(path)), run)
    with pytest.raises(RunError, match="the chat template is not the one"):
        tunesmith.chat(read_recipe(str(path)), run)
    with (
        pytest.raises(RunError, match="the chat template is not the one"),
        serving(Wish([str(run.path)], 0, runs=tmp_path / "runs")),
    ):
        pass
    assert (run / "recipe.yaml").read_text(encoding="utf-8") == kept


def test_the_command_line_from_recipe_to_chat(
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    call: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = recipe_file(train__epochs=1)
    runs = ["--runs", str(tmp_path / "runs")]
    done = subprocess.run([TUNESMITH, "run", str(path), *runs], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "⟦1. Open 0.\n2. Tap Save.<|im_end|>⟧" in done.stdout
    assert "stop token is <|im_end|>" in done.stdout
    assert "report:" in done.stdout
    assert "Traceback" not in done.stderr
    for words in (["chat", str(path), *runs], ["chat", str(tmp_path / "runs/toy"), "--base", "--tokens", "8"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("how to do 1?\n\n"))
        code, out, err = call(*words)
        assert code == 0, err
        assert out.startswith("> ")
    log = (tmp_path / "runs/toy/run.log").read_text()
    assert "tunesmith run" in log


@pytest.mark.parametrize(
    ("change", "message", "code"),
    [
        ({"train__lerning_rate": 1}, "unknown key 'lerning_rate'. Did you mean 'learning_rate'?", 2),
        (
            {"data__format": {"columns": {"answer": "response"}}},
            "no column 'response'. It has: topic, prompt, completion",
            3,
        ),
        ({"base__model": "./nowhere"}, "nowhere: no such file or folder", 4),
        ({"train__memory": "5MB"}, "training needs about", 6),
    ],
)
def test_errors_say_what_where_and_what_next(
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    call: Callable[..., tuple[int, str, str]],
    change: dict[str, object],
    message: str,
    code: int,
) -> None:
    found, _, err = call("run", str(recipe_file(**change)), "--runs", str(tmp_path))
    assert found == code
    assert message in err
    assert "Traceback" not in err


def test_everything_wrong_is_reported_at_once(
    recipe_file: Callable[..., Path], rows_file: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    rows_file.write_text(rows_file.read_text() + '{"topic": "x"}\nnot json\n')
    _, _, err = call("check", str(recipe_file(base__model="./nowhere")))
    assert "line 37: no column 'prompt'" in err
    assert "line 38 column 1: is not JSON" in err
    assert "no such file or folder" in err
