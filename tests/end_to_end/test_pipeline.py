"""The whole pipeline on tiny models of every family, through the command line where a user would use it."""

from __future__ import annotations

import contextlib
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
from tunesmith.commands.serve import ServeOptions, start_server
from tunesmith.config.recipe import read_recipe
from tunesmith.data.conversation import Turn
from tunesmith.errors import RunError
from tunesmith.evaluation.comparison import read_row_replies
from tunesmith.runs.run import Run, hash_path
from tunesmith.training.job import read_journal

TUNESMITH = str(Path(sys.executable).with_name("tunesmith"))


TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
OTHER = TEMPLATE.replace("{{ m['role'] }}", "{{ m['role'] | upper }}").replace("<|assistant|>", "<|ASSISTANT|>")


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
    loss = scores["sections"]["all"]["loss"]
    assert loss["tuned"] < loss["base"]
    assert loss["verdict"] == "better"
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
        names = {p.relative_to(which.path).as_posix() for p in which.path.rglob("*") if p.is_file()}
        return {p for p in names if not p.startswith(("checkpoints/", "tensorboard/"))}

    assert products(run) == products(native)


def test_again_is_at_once_and_says_so(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe_file(train__epochs=1)
    run = everything(path, tmp_path / "runs")
    recipe = read_recipe(str(path))
    log_lines: list[str] = []
    tunesmith.prepare(recipe, run, log_lines.append)
    tunesmith.train(recipe, run, log_lines.append)
    tunesmith.evaluate(recipe, run, log_lines.append)
    tunesmith.report(recipe, run, log_lines.append)
    assert [text.split(":")[1].split(",")[0].strip() for text in log_lines] == ["up to date"] * 4


def test_general_abilities_are_asked_and_a_changed_primary_score_is_said(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    run = everything(recipe_file(train__epochs=1, evaluate__retention=15), tmp_path / "runs")
    scores = run.read_json("scores.json")
    assert scores["retention"]["asked"] == 15 and len(scores["retention"]["abilities"]) == 15
    for name in ("base", "tuned"):
        replies = (run / f"replies/{name}-abilities.jsonl").read_text(encoding="utf-8").splitlines()
        assert {json.loads(line)["part"] for line in replies} == {"abilities"} and len(replies) == 15
    assert scores["planned"] == "loss"
    costs = (run.read_fingerprints("evaluate") or {})["costs"]
    lengths = [item.reply.tokens for item in read_row_replies(run / "replies/tuned.jsonl")]
    assert costs["tuned"]["tokens"] == pytest.approx(sum(lengths) / len(lengths), abs=0.05)
    assert costs["base"]["seconds"] > 0
    assert "What tuning lost elsewhere" in (run / "report.html").read_text(encoding="utf-8")

    recipe = read_recipe(str(recipe_file(train__epochs=1, evaluate__retention=0, evaluate__primary="rougeL")))
    tunesmith.evaluate(recipe, run)
    tunesmith.report(recipe, run)
    scores = run.read_json("scores.json")
    assert "retention" not in scores and "chosen after a first look" in scores["verdict"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "before the training the primary score was loss" in page
    assert "General abilities were not tested (evaluate.retention: 0)" in page


def test_another_training_seed_trains_another_adapter_on_the_same_rows(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    files: list[tuple[bytes, bytes]] = []
    for seed in (3, 4, 3):  # 3 is the recipe's own seed
        recipe = read_recipe(str(recipe_file(train__epochs=1, train__seed=seed)))
        run = tunesmith.open_run(recipe, tmp_path / str(len(files)))
        tunesmith.prepare(recipe, run)
        tunesmith.train(recipe, run)
        weights = (run / "adapter/adapter_model.safetensors").read_bytes()
        files.append(((run / "data/train.jsonl").read_bytes(), weights))
    assert files[0][0] == files[1][0] and files[0][1] != files[1][1]
    assert files[2] == files[0]


def test_tensorboard_shows_the_journal(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = everything(recipe_file(train__epochs=1), tmp_path / "runs")
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    for kind, tag in (("step", "train/loss"), ("valid", "valid/loss")):
        journal = [(e["step"], e["loss"]) for e in read_journal(run / "journal.jsonl") if e["kind"] == kind]
        points = [(scalar.step, scalar.value) for scalar in board.Scalars(tag)]
        assert [step for step, _ in points] == [step for step, _ in journal]
        assert [loss for _, loss in points] == pytest.approx([loss for _, loss in journal], rel=1e-6)


def test_what_changed_is_said(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    run = everything(recipe_file(train__epochs=1), tmp_path / "runs")
    recipe = read_recipe(str(recipe_file(train__epochs=1, evaluate__rows=4)))
    log_lines: list[str] = []
    tunesmith.evaluate(recipe, run, log_lines.append)
    tunesmith.report(recipe, run, log_lines.append)
    assert log_lines[0] == "evaluate: running again, because evaluate changed"
    assert log_lines[-2] == "report: running again, because scores changed"
    (run / "scores.json").write_text("{}")
    log_lines.clear()
    tunesmith.evaluate(recipe, run, log_lines.append)
    assert log_lines[0] == "evaluate: running again, because scores.json was edited or is damaged"


def test_a_finished_run_is_measured_and_written_with_the_settings_of_its_training(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(TEMPLATE)
    path = recipe_file(prompt__template=str(template), train__epochs=1)
    run = everything(path, tmp_path / "runs")
    recipe_yaml = (run / "recipe.yaml").read_text(encoding="utf-8")
    steps: list[Callable[..., object]] = [tunesmith.evaluate, tunesmith.report, tunesmith.export, tunesmith.card]
    for key, value in {
        "adapter.rank": 3,
        "train.learning_rate": 0.5,
        "data.split.test": 0.2,
        "prompt.system": "Be.",
    }.items():
        changed = read_recipe(str(path), settings={key: value})
        for step in steps:
            with pytest.raises(RunError, match=rf"trained with other settings or data: {key.split('.')[0]}"):
                step(changed, run)
    tunesmith.report(read_recipe(str(path), settings={"data.max_dropped": 0.9}), run)  # no row depends on it
    (tmp_path / "other.jinja").write_text(OTHER)
    other_template = read_recipe(str(recipe_file(prompt__template="other.jinja", train__epochs=1)))
    for step in steps:
        with pytest.raises(RunError, match="trained with other settings or data: prompt changed"):
            step(other_template, run)
    for changed in (other_template, read_recipe(str(path), settings={"prompt.template": "model"})):
        with pytest.raises(RunError, match="the chat template is not the one"):
            tunesmith.chat(changed, run)
    with (
        pytest.raises(RunError, match="the chat template is not the one"),
        start_server(ServeOptions([str(tmp_path / "toy.yaml")], 0, runs=tmp_path / "runs")),
    ):
        pass
    assert (run / "recipe.yaml").read_text(encoding="utf-8") == recipe_yaml


@pytest.mark.parametrize("became", ["edited", "deleted"])
def test_a_template_that_was_edited_or_deleted_breaks_no_finished_run(
    recipe_file: Callable[..., Path], tmp_path: Path, call: Callable[..., tuple[int, str, str]], became: str
) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(TEMPLATE)
    path = recipe_file(prompt__template="own.jinja", train__epochs=1, export__files=["merged"])
    run = everything(path, tmp_path / "runs")
    assert (run / "data/template.jinja").read_text() == TEMPLATE
    assert "data/template.jinja" in (run.read_fingerprints("prepare") or {})["files"]
    rows, seals = hash_path(run / "data"), hash_path(run / ".fingerprints")
    prompt = [Turn("user", "how to do 3?")]
    before = "".join(tunesmith.chat(read_recipe(str(path)), run).stream(prompt, max_new_tokens=8))
    if became == "edited":
        template.write_text(OTHER)
    else:
        template.unlink()
    verb = "changed" if became == "edited" else "deleted"
    message = f"own.jinja was {verb} after the rows were prepared; using the run's copy"
    for name in (str(path), str(run.path)):  # the recipe, and the run's own
        recipe, log_lines = read_recipe(name), list[str]()
        assert "".join(tunesmith.chat(recipe, run, log_lines.append).stream(prompt, max_new_tokens=8)) == before
        assert message in " ".join(log_lines)
        for step in (tunesmith.evaluate, tunesmith.report, tunesmith.card):
            step(recipe, run)
        with start_server(ServeOptions([name], 0, runs=tmp_path / "runs"), log_lines.append):
            pass
        assert " ".join(log_lines).count(message) == 2
    code, out, err = call("export", str(path))
    assert code == 0 and out.count(message) == 1, err
    assert "verified: merged" in out
    (run / "scores.json").unlink()
    code, out, err = call("evaluate", str(path))
    assert code == 0 and out.count(message) == 1, err
    code, out, err = call("run", str(path))
    assert hash_path(run / "data") == rows
    if became == "deleted":
        assert code == 0 and "prepare: up to date" in out and "train: up to date" in out
        assert "prepare: the chat template own.jinja is gone; using the run's copy" in out
        return
    assert code == 5 and "own.jinja was changed after the rows were prepared. Undo the change, or continue with" in err
    code, out, err = call("prepare", str(path))  # sees the edit
    assert code == 0 and "template file changed" in out and hash_path(run / ".fingerprints") != seals
    assert (run / "data/template.jinja").read_text() == OTHER and "|USER|" in (run / "audit.html").read_text()
    code, _, err = call("evaluate", str(path))
    assert code == 5 and "trained with other settings or data: prompt changed" in err


def test_a_stopped_training_goes_on_with_its_own_template(
    recipe_file: Callable[..., Path], tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(TEMPLATE)
    recipe = read_recipe(str(recipe_file(prompt__template="own.jinja")))
    adapters = []
    for name in ("whole", "runs"):
        run = tunesmith.open_run(recipe, tmp_path / name)
        tunesmith.prepare(recipe, run)
        with pytest.raises(KeyboardInterrupt) if name == "runs" else contextlib.nullcontext():
            tunesmith.train(recipe, run, watch=at("step", 8, crash) if name == "runs" else None)
        if name == "runs":
            template.write_text(OTHER)
            code, out, err = call("train", "toy.yaml")
            assert code == 0, err
            assert "own.jinja was changed after the rows were prepared; using the run's copy" in out
            assert "resuming after step 5" in out
        adapters.append(hash_path(run / "adapter"))
    assert adapters[0] == adapters[1]
    (run / "data/template.jinja").write_text(OTHER)
    code, _, err = call("evaluate", "toy.yaml")
    assert code == 5 and "template.jinja: the run's copy of its chat template is missing or was changed" in err


def test_the_command_line_from_recipe_to_chat(
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    call: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = recipe_file(train__epochs=1)
    runs = ["--runs", str(tmp_path / "runs")]
    process = subprocess.run([TUNESMITH, "run", str(path), *runs], capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "⟦1. Open 0.\n2. Tap Save.<|im_end|>⟧" in process.stdout
    assert "stop token is <|im_end|>" in process.stdout
    assert "report:" in process.stdout
    assert "Traceback" not in process.stderr
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
    exit_code, _, err = call("run", str(recipe_file(**change)), "--runs", str(tmp_path))
    assert exit_code == code
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
