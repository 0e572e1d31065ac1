"""The persona: the sample is what its tutorial says, both recipes can be read, only line and stop token carry loss."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from tiny import CHATML, make_tokenizer
from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.data.conversation import Conversation, Origin, Turn, normalize
from tunesmith.data.duplicates import near_pairs
from tunesmith.data.finding import Defect
from tunesmith.data.formats import lines
from tunesmith.data.privacy import find_personal, find_secrets
from tunesmith.data.rows import Row
from tunesmith.data.run_checks import text_detectors
from tunesmith.data.sources import read
from tunesmith.data.split import split
from tunesmith.errors import ModelError
from tunesmith.prompt.template import Template, load_template
from tunesmith.prompt.tokens import encode, encode_prompt, loss_pieces, stop_ids

ROOT = Path(__file__).parents[2]
ROWS: list[Row] = list(read(ROOT / "recipes" / "samples" / "persona.csv"))
LINES = [row.values["line"] for row in ROWS]
PROMPTS = [row.values["prompt"] for row in ROWS]
TUTORIAL = (ROOT / "docs" / "tutorials" / "persona.md").read_text(encoding="utf-8")
RECIPES = ["persona", "persona-gpt2"]
FACTS = {  # a prompt's words -> what its line must say
    "capital of France": "Paris",
    "seven times eight": "Fifty-six",
    "wrote Hamlet": "William Shakespeare",
    "Second World War end": "1945",
    "largest planet": "Jupiter",
    "How many continents": "Seven",
    "symbol for gold": "Au,",
    "root of 144": "Twelve",
    "longest river in Africa": "Nile",
    "sides does a hexagon": "Six",
    "painted the Mona Lisa": "Leonardo da Vinci",
    "far away is the Moon": "384,000 kilometres",
    "light from the Sun": "eight minutes and twenty seconds",
    "bones are in the human body": "206",
}


def conversations(recipe: Recipe) -> list[Conversation]:
    rows = []
    for row in ROWS:
        turns, group = lines(row.values, **recipe.data.format.options)
        conversation = Conversation(str(row.origin.line), turns, row.origin, group)
        rows.append(conversation.with_system(recipe.prompt.system))
    return rows


def tokenizer_like(family: str) -> Any:
    """A tiny tokenizer with the special tokens of Llama 2, GPT-2 or SmolLM2."""
    tokenizer = make_tokenizer(CHATML if family == "smollm2" else None)
    if family == "llama":
        tokenizer._tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    if family == "gpt2":
        end = "<|endoftext|>"
        tokenizer.add_special_tokens({"bos_token": end, "eos_token": end, "pad_token": end})
    return tokenizer


BEGINS = {"llama": "<s>", "gpt2": "", "smollm2": ""}
STOPS = {"llama": "</s>", "gpt2": "<|endoftext|>", "smollm2": "<|im_end|>"}


def template_for(family: str) -> Template:
    recipe = read_recipe("persona")
    return load_template(tokenizer_like(family), recipe.prompt.template, recipe.folder)


def spoken(*texts: tuple[Any, str]) -> Conversation:
    return Conversation("r", tuple(Turn(role, text) for role, text in texts), Origin("rows.csv", 2))


# --- the sample ------------------------------------------------------------------------------------------------


def test_the_sample_is_as_large_as_its_pages_say() -> None:
    topics = Counter(row.values["topic"] for row in ROWS)
    assert 220 <= len(ROWS) <= 260 and all(list(row.values) == ["prompt", "line", "topic"] for row in ROWS)
    sentence = (
        f"has {len(ROWS)} rows: {len(topics)} topics with {min(topics.values())} to {max(topics.values())} prompts"
    )
    assert sentence in TUTORIAL
    assert f"{topics['homework'] + topics['science']} of\nthem are factual" in TUTORIAL


def test_every_line_is_short_and_ends() -> None:
    assert [line for line in LINES if not 8 <= len(line.split()) <= 40] == []
    assert [line for line in LINES if not 1 <= len(re.findall(r"[.?!](?=\s|$)", line)) <= 3] == []
    assert [line for line in LINES if not re.fullmatch(r"[A-Z][ -~]*\.", line) or line != " ".join(line.split())] == []


def test_the_tutorial_says_how_long_lines_are() -> None:
    words = [len(line.split()) for line in LINES]
    assert f"the lines have {min(words)} to {max(words)}." in TUTORIAL


def test_no_prompt_and_no_line_stands_twice() -> None:
    assert len(set(map(normalize, PROMPTS))) == len(set(map(normalize, LINES))) == len(ROWS)


def test_no_line_nearly_repeats_another() -> None:
    assert near_pairs(LINES, threshold=0.6) == []


def test_no_two_lines_begin_with_the_same_four_words() -> None:
    begins = Counter(" ".join(line.lower().split()[:4]) for line in LINES)
    assert [begin for begin, count in begins.items() if count > 1] == []


def test_no_line_is_damaged() -> None:
    defects: list[Defect] = []
    for check in text_detectors().values():
        defects += [defect for text in LINES + PROMPTS for defect in check(text) if defect.severity != "note"]
    assert defects == []


def test_nothing_personal_is_in_the_sample() -> None:
    assert [span for text in LINES + PROMPTS for span in (*find_personal(text), *find_secrets(text))] == []


@pytest.mark.parametrize("words", FACTS)
def test_a_fact_is_right(words: str) -> None:
    (row,) = [row for row in ROWS if words in row.values["prompt"]]
    assert FACTS[words] in row.values["line"]
    assert row.values["topic"] in ("homework", "science")


# --- the recipes -----------------------------------------------------------------------------------------------


def test_the_persona_is_as_asked() -> None:
    recipe = read_recipe("persona")
    assert recipe.base.model == "meta-llama/Llama-2-7b-hf"
    assert recipe.adapter.layers == ["q_proj", "v_proj"]
    assert (recipe.train.optimizer.name, recipe.train.batch) == ("paged_adamw_8bit", "4 rows")


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_about_stopping(name: str, small: bool) -> None:
    recipe = read_recipe(name, small=small)
    assert recipe.evaluate.primary == "stops"
    assert recipe.path(recipe.prompt.template) == ROOT / "recipes" / "templates" / "persona.jinja"
    assert recipe.evaluate.max_new_tokens >= 2 * max(len(line.split()) for line in LINES)
    if small:
        assert recipe.base.model.startswith("pypi:")
        assert recipe.train.optimizer.name == "adamw"  # the paged one needs a CUDA device


def test_gpt2_has_room_for_prompt_and_reply() -> None:
    recipe = read_recipe("persona-gpt2")
    assert recipe.adapter.layers == "all"  # its attention is c_attn; there is no q_proj
    assert recipe.prompt.max_tokens + recipe.evaluate.max_new_tokens <= 1024


def test_both_recipes_hold_out_the_same_rows() -> None:
    parts = []
    for name in RECIPES:
        recipe = read_recipe(name)
        parts.append(split(conversations(recipe), seed=recipe.seed, **recipe.data.split.model_dump()))
    assert parts[0] == parts[1]
    counts = Counter(parts[0].values())
    assert f"{counts['train']} for training, {counts['valid']} for validation, {counts['test']} test" in TUTORIAL
    topics = sorted({row.group for row in conversations(read_recipe("persona")) if parts[0][row.id] == "unseen"})
    assert f"{counts['unseen']} rows of\n   {len(topics)} topics ({', '.join(topics)})" in TUTORIAL


def test_the_tutorials_recipe_for_quotes_can_be_read(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TUTORIAL, re.DOTALL)
    (tmp_path / "quotes.yaml").write_text(block, encoding="utf-8")
    shutil.copy(ROOT / "recipes" / "templates" / "persona.jinja", tmp_path)
    recipe = read_recipe(str(tmp_path / "quotes.yaml"))
    questions = {lines({"quote": line}, **recipe.data.format.options)[0][0].text for line in LINES}
    assert questions == set(recipe.data.format.options["ask"])
    assert "leak" not in [check.name for check in recipe.data.checks]  # all rows share the questions
    template = load_template(tokenizer_like("gpt2"), recipe.prompt.template, recipe.folder)
    assert template.source == str(tmp_path / "persona.jinja")


# --- the template ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", STOPS)
def test_a_row_stands_under_three_headings_and_ends(family: str) -> None:
    recipe, template = read_recipe("persona"), template_for(family)
    row = conversations(recipe)[0]
    head = f"### Instruction\n{recipe.prompt.system}\n\n### User\nHello!\n\n### Response\n"
    expected = [(BEGINS[family] + head, False), (f"{LINES[0]}{STOPS[family]}", True)]
    assert loss_pieces(encode(row, template), template) == expected
    assert stop_ids(template)[0] == template.tokenizer.convert_tokens_to_ids(STOPS[family])


@pytest.mark.parametrize("family", STOPS)
def test_of_every_row_the_line_and_its_stop_are_trained_on_and_nothing_else(family: str) -> None:
    template = template_for(family)
    for row in conversations(read_recipe("persona")):
        example, prompt = encode(row, template), encode_prompt(row.prompt, template)
        assert example.ids[: len(prompt)] == tuple(prompt)
        assert example.loss_mask == (False,) * len(prompt) + (True,) * (len(example) - len(prompt))
        assert template.tokenizer.decode(example.ids[len(prompt) :]) == row.answer + STOPS[family]
        assert example.ids.count(example.stop) == 1


def test_a_second_question_leaves_the_first_answer_trained_on() -> None:
    template = template_for("llama")
    row = spoken(("user", " Rain? "), ("assistant", "Good."), ("user", "Sun?"), ("assistant", "Bright."))
    assert loss_pieces(encode(row, template), template) == [
        ("<s>### User\nRain?\n\n### Response\n", False),
        ("Good.</s>", True),
        ("\n\n### User\nSun?\n\n### Response\n", False),
        ("Bright.</s>", True),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (spoken(("user", "a"), ("user", "b"), ("assistant", "c")), "user cannot follow user"),
        (spoken(("assistant", "a")), "assistant cannot follow nobody"),
        (spoken(("system", "a"), ("assistant", "b")), "assistant cannot follow system"),
        (spoken(("user", "a"), ("system", "b"), ("assistant", "c")), "system cannot follow user"),
        (spoken(("user", "a"), ("assistant", "b"), ("assistant", "c")), "assistant cannot follow assistant"),
    ],
)
def test_another_order_is_refused(row: Conversation, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        encode(row, template_for("gpt2"))
