"""Chat templates that rewrite turns, think, or write the date: from rows to replies, on tiny models."""

from __future__ import annotations

import asyncio
import datetime
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

import tunesmith
from stopping import at, crash
from tunesmith.commands.shared import load_recipe_template, load_weights
from tunesmith.config.recipe import read_recipe
from tunesmith.data.conversation import Turn, read_rows
from tunesmith.errors import DataError, MultipleErrors
from tunesmith.evaluation.comparison import read_row_replies
from tunesmith.prompt.tokens import encode
from tunesmith.runs.run import hash_file
from tunesmith.serve.backend import Sampling
from tunesmith.serve.weights_backend import WeightsBackend

THINK = (  # as Qwen3 writes: the last answer has an empty thought, earlier ones lost theirs
    "{%- set ns = namespace(last=-1) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}{%- for m in messages -%}"
    "{{- '<|im_start|>' + m.role + '\n' -}}{%- if m.role == 'assistant' and loop.index0 > ns.last -%}"
    "{{- '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' -}}{%- endif -%}"
    "{{- m.content + '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
DATED = (
    "{{ '<|im_start|>system\nToday is ' + strftime_now('%d %B %Y') + '.<|im_end|>\n' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ANSWER = "In the yard."
Write = Callable[..., Path]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def talks(count: int, exchanges: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": role, "content": f"{role} says {n}, {turn}."}
                for turn in range(exchanges)
                for role in ("user", "assistant")
            ]
        }
        for n in range(count)
    ]


def recipe_of(recipe_file: Write, tmp_path: Path, rows: list[dict[str, Any]], template: str, **changes: Any) -> Path:
    write_rows(tmp_path / "own.jsonl", rows)
    (tmp_path / "own.jinja").write_text(template)
    data = {"source": "own.jsonl", "split": {"together": None, "test": 0.2, "valid": 0.1}, "checks": ["empty"]}
    return recipe_file(**{"data": data, "prompt__template": "own.jinja", **changes})


def test_a_limit_that_leaves_no_row_is_named_with_the_one_that_keeps_them(
    recipe_file: Write, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    path = recipe_of(recipe_file, tmp_path, talks(20, 3), THINK, prompt__max_tokens=32, data__checks=["too_long"])
    for command in ("check", "run"):
        code, _, err = call(command, str(path))
        assert code == 3
        assert "20 of 20 rows would be left out: too_long 20" in err
        assert "the longest row has" in err and "prompt.max_tokens: 256 keeps all of them" in err
    code, _, err = call("prepare", str(path))
    assert code == 3
    assert "runs/toy/audit.html: the checks leave no row of 20: too_long 20" in err and "prompt.max_tokens: 256" in err
    assert "too long" in (tmp_path / "runs/toy/audit.html").read_text()
    code, out, _ = call("check", str(path), "--set", "prompt.max_tokens=256")
    assert code == 0 and "rows would be left out" not in out


def test_some_rows_left_out_are_a_warning_and_many_an_error(recipe_file: Write, tmp_path: Path) -> None:
    rows = [*talks(18, 1), *talks(2, 4)]
    recipe = read_recipe(str(recipe_of(recipe_file, tmp_path, rows, THINK, prompt__max_tokens=128)))
    few = recipe.data.model_copy(update={"checks": read_recipe_checks("too_long")})
    (warning,) = [
        text for text in tunesmith.check(recipe.model_copy(update={"data": few})).warnings if "left out" in text
    ]
    assert warning.startswith("2 of 20 rows would be left out: too_long 2. The limit is 128 tokens")
    strict = few.model_copy(update={"max_dropped": 0.05})
    with pytest.raises(MultipleErrors, match=r"set data\.max_dropped above 0\.10 to continue without them"):
        tunesmith.check(recipe.model_copy(update={"data": strict}))
    write_rows(tmp_path / "own.jsonl", [*talks(16, 1), *talks(4, 4)])
    (warning,) = [
        text for text in tunesmith.check(recipe.model_copy(update={"data": few})).warnings if "left out" in text
    ]
    assert warning.startswith("WARNING: 4 of 20 rows")


def read_recipe_checks(*names: str) -> list[Any]:
    from tunesmith.config.recipe import NamedSetting

    return [NamedSetting(name, {}) for name in names]


def test_a_conversation_whose_turns_are_rewritten_becomes_a_row_for_each_answer(
    recipe_file: Write, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    path = recipe_of(recipe_file, tmp_path, talks(20, 3), THINK, prompt__max_tokens=512)
    code, out, _ = call("check", str(path))
    assert code == 0
    assert "20 rows, 60 answers" in out and "20 conversations become 60 rows, one for each answer" in out
    recipe = read_recipe(str(path))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    lines: list[str] = []
    tunesmith.prepare(recipe, run, lines.append)
    account = run.read_json("audit.json")
    learned = account["parts"]["train"] + account["parts"]["valid"]
    assert account["expanded"] == {"conversations": learned, "rows": 3 * learned}
    assert any(f"{learned} conversations become {3 * learned} rows" in line for line in lines)
    template = load_recipe_template(recipe, load_weights(recipe, lines.append), run)
    rows = read_rows(run / "data/train.jsonl")
    assert len(rows) == 3 * account["parts"]["train"]
    texts = set()
    for row in rows:
        example = encode(row, template)
        assert example.answers == 1
        text = template.tokenizer.decode([i for i, learn in zip(example.ids, example.loss_mask, strict=True) if learn])
        assert text == f"<think>\n\n</think>\n\n{row.answer}<|im_end|>"
        texts.add(row.answer)
    assert len(texts) == len(rows)
    assert len(read_rows(run / "data/test.jsonl")) == account["parts"]["test"]
    tunesmith.train(recipe, run)
    tunesmith.evaluate(recipe, run)
    code, _, err = call("check", str(path), "--set", "prompt.expand=never")
    assert code == 3 and "unlearnable 20" in err and "prompt.expand" in err


def test_a_date_is_that_of_preparing_whenever_training_goes_on(
    recipe_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"how to do {n}?", "completion": f"Open {n}."} for n in range(20)]
    path = recipe_of(recipe_file, tmp_path, rows, DATED, train__epochs=4)
    recipe = read_recipe(str(path))
    whole, stopped, later = (tunesmith.open_run(recipe, tmp_path / name) for name in ("whole", "stopped", "later"))
    for run in (whole, stopped):
        tunesmith.prepare(recipe, run)
    tunesmith.train(recipe, whole)

    with pytest.raises(KeyboardInterrupt):
        tunesmith.train(recipe, stopped, watch=at("step", 8, crash))

    class Later(datetime.date):
        @classmethod
        def today(cls) -> Self:
            return cls(2031, 5, 6)

    clock = types.SimpleNamespace(date=Later, datetime=datetime.datetime)
    for module in ("tunesmith.prompt.template", "tunesmith.commands.prepare"):
        monkeypatch.setattr(f"{module}.datetime", clock)
    tunesmith.train(recipe, stopped)
    tunesmith.prepare(recipe, later)
    adapters = [hash_file(run / "adapter/adapter_model.safetensors") for run in (whole, stopped)]
    assert adapters[0] == adapters[1]
    say = list[str]().append
    prompts = [
        load_recipe_template(recipe, load_weights(recipe, say), run).render((Turn("user", "?"),))
        for run in (stopped, later)
    ]
    assert "06 May 2031" not in prompts[0] and "06 May 2031" in prompts[1]


def test_replies_are_without_the_templates_thought(recipe_file: Write, tmp_path: Path) -> None:
    """A model that has learned its one answer answers it exactly, in every place where a reply is shown."""
    rows = [{"prompt": f"Where is crate {n}?", "completion": ANSWER} for n in range(30)]
    path = recipe_of(
        recipe_file, tmp_path, rows, THINK,
        adapter={"rank": 16, "alpha": 16, "train_also": ["embeddings", "head"]},
        train={"epochs": 20, "learning_rate": 0.01, "evaluate_every": 200, "precision": "float32"},
        evaluate={"rows": 6, "max_new_tokens": 64, "metrics": ["exact_match"], "primary": "exact_match"},
    )  # fmt: skip
    recipe = read_recipe(str(path))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    tunesmith.prepare(recipe, run)
    tunesmith.train(recipe, run)
    tunesmith.evaluate(recipe, run)
    assert {item.reply.text for item in read_row_replies(run / "replies/tuned.jsonl")} == {ANSWER}
    model = tunesmith.chat(recipe, run)
    prompt = [Turn("user", "Where is crate 3?")]
    assert "".join(model.stream(prompt, max_new_tokens=64)) == ANSWER

    async def served() -> tuple[str, str]:
        backend = WeightsBackend("toy", model, None)
        try:
            async with backend.writing(prompt, Sampling(64)) as writing:
                return "".join([piece async for piece in writing]), writing.finish
        finally:
            backend.close()

    assert asyncio.run(served()) == (ANSWER, "stop")


def test_reasoning_is_learned_or_left_out_as_the_recipe_says(recipe_file: Write, tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Where is {n}?"},
                {"role": "assistant", "content": f"Shelf {n}.", "reasoning_content": f"I look for {n}."},
            ]
        }
        for n in range(20)
    ]
    path = recipe_of(recipe_file, tmp_path, rows, THINK)
    example_of = {example.title: example for example in tunesmith.check(read_recipe(str(path))).shown}
    assert "I look for" in "".join(text for text, with_loss in example_of["the longest row"].pieces if with_loss)
    dropped = tunesmith.check(read_recipe(str(path), settings={"prompt.reasoning": "drop"}))
    assert "I look for" not in "".join(text for example in dropped.shown for text, _ in example.pieces)
    message = "the reasoning of 20 rows is dropped, because prompt.reasoning is drop"
    assert message in dropped.warnings
    recipe = read_recipe(str(path), settings={"prompt.reasoning": "drop"})
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    lines: list[str] = []
    tunesmith.prepare(recipe, run, lines.append)
    assert f"prepare: {message}" in lines
    assert run.read_json("audit.json")["reasoning_left_out"] == 20
    assert "the reasoning of 20 rows is left out (prompt.reasoning: drop)" in (run / "audit.html").read_text()


def test_check_counts_only_rows_that_are_kept(recipe_file: Write, tmp_path: Path) -> None:
    rows = talks(20, 3)
    path = recipe_of(recipe_file, tmp_path, [*rows, *rows[:4]], THINK, prompt__max_tokens=512)
    checked = tunesmith.check(read_recipe(str(path), settings={"data.checks": ["duplicate"]}))
    assert (checked.rows, checked.answers) == (20, 60)
    assert any(text.startswith("20 conversations become 60 rows") for text in checked.warnings)
    assert any("4 of 24 rows would be left out: duplicate 4. To keep" in text for text in checked.warnings)


def test_an_option_that_the_template_does_not_know_is_refused(recipe_file: Write, tmp_path: Path) -> None:
    template = "{% if enable_thinking is defined and not enable_thinking %}<s>{% endif %}" + THINK
    rows = [{"prompt": f"Where is {n}?", "completion": ANSWER} for n in range(20)]
    path = recipe_of(recipe_file, tmp_path, rows, template, prompt__template_options={"enable_thinkin": False})
    with pytest.raises(MultipleErrors, match=r"no option 'enable_thinkin'.*enable_thinking"):
        tunesmith.check(read_recipe(str(path)))
    with pytest.raises(MultipleErrors, match=r"'enable_thinking' as true or false, but it is the string 'false'"):
        tunesmith.check(read_recipe(str(path), settings={"prompt.template_options": {"enable_thinking": "false"}}))
    right = read_recipe(str(path), settings={"prompt.template_options": {"enable_thinking": False}})
    assert tunesmith.check(right).shown[0].pieces[0][0].startswith("<s>")


def test_a_template_under_which_no_row_can_be_learned_is_refused(recipe_file: Write, tmp_path: Path) -> None:
    rows = [{"prompt": f"Where is {n}?", "completion": ANSWER} for n in range(20)]
    path = recipe_of(recipe_file, tmp_path, rows, "{% for m in messages %}{{ m['role'] }}<|im_end|>{% endfor %}")
    with pytest.raises(MultipleErrors) as caught:
        tunesmith.check(read_recipe(str(path)))
    assert isinstance(caught.value.errors[0], DataError)
    assert "leaves out the answer" in str(caught.value)
