"""The samples of finance and instruct: right in form and sum, nothing twice, nothing personal, as their pages say."""

from __future__ import annotations

import ast
import contextlib
import io
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from tiny import make_tokenizer
from tunesmith.config.recipe import read_recipe
from tunesmith.config.registry import resolve
from tunesmith.data.conversation import Conversation, Origin, Turn, normalize
from tunesmith.data.duplicates import near_pairs
from tunesmith.data.finding import Defect
from tunesmith.data.privacy import find_personal, find_secrets
from tunesmith.data.run_checks import text_detectors
from tunesmith.data.sources import read
from tunesmith.errors import ModelError
from tunesmith.prompt.template import Template, load_template
from tunesmith.prompt.tokens import encode, encode_prompt, loss_pieces

ROOT = Path(__file__).parents[2]
NAMES = ["finance", "instruct"]
WORDS = {"finance": range(40, 121), "instruct": range(20, 151)}
SMALL_BUDGET = 90_000  # tokens: five minutes at 300 tokens/s
TOKENS_A_WORD = 1.9  # SmolLM2 on finance with its template; 1.8 on instruct


def conversations(name: str) -> list[Conversation]:
    """The sample's rows, read by the recipe's own format."""
    recipe = read_recipe(name, small=True)
    assert isinstance(recipe.data.source, str)
    parse = resolve("tunesmith.data.formats", recipe.data.format.name, where="test")
    rows = []
    for row in read(recipe.path(recipe.data.source)):
        turns, group = parse(row.values, **recipe.data.format.options)
        rows.append(Conversation(str(row.origin.line), turns, row.origin, group, row.values))
    return rows


ROWS = {name: conversations(name) for name in NAMES}
TUTORIALS = {name: (ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8") for name in NAMES}


def said(row: Conversation, role: str) -> list[str]:
    return [turn.text for turn in row.turns if turn.role == role]


def texts(name: str, role: str) -> list[str]:
    return [text for row in ROWS[name] for text in said(row, role)]


# --- both samples ----------------------------------------------------------------------------------------------


def test_the_samples_are_as_large_as_their_pages_say() -> None:
    cases = sum(bool(row.fields["input"]) for row in ROWS["finance"])
    assert f"has {len(ROWS['finance'])} rows, {cases} of them with a case" in TUTORIALS["finance"]
    assert 220 <= len(ROWS["finance"]) <= 260 and 0.2 <= cases / len(ROWS["finance"]) <= 0.3
    several = sum(len(said(row, "assistant")) > 1 for row in ROWS["instruct"])
    systems = sum(row.turns[0].role == "system" for row in ROWS["instruct"])
    assert f"has {len(ROWS['instruct'])} of them" in TUTORIALS["instruct"]
    assert f"{several} have two or three exchanges, {systems} begin with a system message" in TUTORIALS["instruct"]
    assert 180 <= len(ROWS["instruct"]) <= 220 and 0.35 <= several / len(ROWS["instruct"]) <= 0.45
    assert {len(said(row, "assistant")) for row in ROWS["instruct"]} == {1, 2, 3}


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_as_long_as_the_style_asks(name: str) -> None:
    assert [text for text in texts(name, "assistant") if len(text.split()) not in WORDS[name]] == []
    assert [text for row in ROWS[name] for turn in row.turns if (text := turn.text) != text.strip() or not text] == []


@pytest.mark.parametrize("name", NAMES)
def test_no_prompt_and_no_answer_stands_twice(name: str) -> None:
    for sample_texts in ([row.question for row in ROWS[name]], texts(name, "assistant")):
        assert [text for text, count in Counter(map(normalize, sample_texts)).items() if count > 1] == []


@pytest.mark.parametrize("name", NAMES)
def test_no_row_nearly_repeats_another(name: str) -> None:
    for role in ("user", "assistant"):
        assert near_pairs(["\n".join(said(row, role)) for row in ROWS[name]], threshold=0.6) == []
    assert near_pairs([said(row, "user")[0] for row in ROWS[name]], threshold=0.6) == []


@pytest.mark.parametrize("name", NAMES)
def test_no_answer_is_damaged(name: str) -> None:
    defects: list[Defect] = []
    for check in text_detectors().values():
        defects += [defect for text in texts(name, "assistant") for defect in check(text) if defect.severity != "note"]
    assert defects == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_personal_is_in_a_sample(name: str) -> None:
    sample_texts = [turn.text for row in ROWS[name] for turn in row.turns]
    assert [span for text in sample_texts for span in (*find_personal(text), *find_secrets(text))] == []


# --- sums ------------------------------------------------------------------------------------------------------

NUMBER = r"\d[\d,]*(?:\.\d+)?%?"
EQUATION = re.compile(
    rf"(?<![\w.,%/])(?P<left>(?:\(|-)*{NUMBER}(?:[ ()]*(?:[-+/^]|x)[ ()]*{NUMBER})+\)*)(?P<right>(?: = -?{NUMBER})+)"
)
OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def number(text: str) -> float:
    plain = text.replace(",", "")
    return float(plain[:-1]) / 100 if plain.endswith("%") else float(plain)


def half_a_place(text: str) -> float:
    """The largest rounding error of a number as it is written."""
    places = len(text.rstrip("%,").partition(".")[2])
    return float(0.5 * 10.0**-places * (0.01 if text.endswith("%") else 1))


def worth(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp):
        return OPERATIONS[type(node.op)](worth(node.left), worth(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -worth(node.operand)
    assert isinstance(node, ast.Constant) and isinstance(node.value, float)
    return node.value


def sums(text: str) -> Iterator[tuple[str, bool]]:
    """Every '2 x 3 = 6' in a text, and whether it is right to the last written place."""
    for equation_match in EQUATION.finditer(text):
        plain = re.sub(NUMBER, lambda match: f"({number(match[0])!r})", equation_match["left"])
        value = worth(ast.parse(plain.replace("x", "*").replace("^", "**"), mode="eval").body)
        for result in re.findall(rf"-?{NUMBER}", equation_match["right"]):
            yield equation_match[0], abs(value - number(result)) <= half_a_place(result) + 1e-9


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("so 2 x 3 = 6, and", [True]),
        ("2 x 3 = 7", [False]),
        ("200 / 3 = 66.67", [True]),
        ("200 / 3 = 66.66", [False]),
        ("(4 + 2) / 12 = 50%", [True]),
        ("1,000 x 1.05^2 = 1,102.50", [True]),
        ("1 / 4 = 25% = 0.4", [True, False]),
        ("3 - 5 = -2", [True]),
    ],
)
def test_a_wrong_sum_is_found(text: str, right: list[bool]) -> None:
    assert [is_right for _, is_right in sums(text)] == right


@pytest.mark.parametrize("name", NAMES)
def test_every_sum_is_right(name: str) -> None:
    equations = [pair for text in texts(name, "assistant") for pair in sums(text)]
    assert [equation for equation, right in equations if not right] == []
    assert len(equations) > {"finance": 300, "instruct": 40}[name]


def test_every_sum_of_finance_is_read() -> None:
    assert [row.answer for row in ROWS["finance"] if row.answer.count(" = ") != len(list(sums(row.answer)))] == []


def test_a_case_is_answered_with_a_sum_from_its_own_numbers() -> None:
    for row in ROWS["finance"]:
        if input_numbers := set(re.findall(NUMBER, row.fields["input"])):
            used = {part for equation, _ in sums(row.answer) for part in re.findall(NUMBER, equation)}
            assert len({value.rstrip(",") for value in input_numbers} & {value.rstrip(",") for value in used}) >= 2, (
                row.answer
            )


# --- code ------------------------------------------------------------------------------------------------------

SNIPPETS = [
    code for text in texts("instruct", "assistant") for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
]


def test_there_is_code_to_run() -> None:
    assert len(SNIPPETS) >= 25 and len(set(SNIPPETS)) == len(SNIPPETS)


@pytest.mark.parametrize("code", SNIPPETS, ids=lambda code: code.splitlines()[0])
def test_a_snippet_prints_what_its_comments_say(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "snippet", "exec"), {})
    assert printed.getvalue().splitlines() == re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)


# --- the recipes -----------------------------------------------------------------------------------------------


def test_finance_is_as_asked() -> None:
    recipe = read_recipe("finance")
    assert recipe.data.source == "hub:gbharti/finance-alpaca?split=train"
    assert (recipe.data.sample.train, recipe.data.sample.test, recipe.evaluate.rows) == (1000, 300, 300)
    assert (recipe.base.model, recipe.adapter.layers) == ("meta-llama/Llama-2-7b-hf", ["q_proj", "v_proj"])
    assert (recipe.train.epochs, recipe.evaluate.primary) == (1, "rougeLsum")


def test_instruct_is_as_asked() -> None:
    recipe = read_recipe("instruct")
    assert recipe.data.source == "hub:mlabonne/FineTome-100k?split=train"
    assert recipe.base.model == "unsloth/Llama-3.2-1B-Instruct"
    train = recipe.train
    assert (train.batch, train.warmup, train.schedule.name, train.optimizer.name) == (
        "8 rows",
        5,
        "linear",
        "adamw_8bit",
    )
    assert (train.weight_decay, train.learning_rate, train.epochs, train.checkpoint_every) == (0.01, 2e-4, 1, 100)
    assert recipe.seed == 3407 and "broken" in [check.name for check in recipe.data.checks]


@pytest.mark.parametrize("name", NAMES)
def test_the_small_recipe_fits_its_sample_and_five_minutes(name: str) -> None:
    recipe, rows = read_recipe(name, small=True), ROWS[name]
    sample, split = recipe.data.sample, recipe.data.split
    assert recipe.base.model.startswith("pypi:") and recipe.train.optimizer.name == "adamw"
    assert sample.train and sample.valid and sample.test
    assert sample.test <= split.test * len(rows) and sample.valid <= split.valid * len(rows)
    assert sample.train <= (1 - split.test - split.valid) * len(rows)
    words = sum(len(turn.text.split()) for row in rows for turn in row.turns) / len(rows)
    assert recipe.train.epochs * sample.train * words * TOKENS_A_WORD <= SMALL_BUDGET
    sentence = f"{sample.train} for training, {sample.valid} for validation and {sample.test} for the test"
    assert sentence in " ".join(TUTORIALS[name].split())


# --- the template ----------------------------------------------------------------------------------------------

OPENING = "Below is a task, sometimes with details. Write a response that completes it.\n\n"


def alpaca_template(*, adds_bos: bool = True) -> Template:
    """The recipe's template under a tokenizer with Llama's special tokens."""
    recipe, tokenizer = read_recipe("finance"), make_tokenizer(None)
    if adds_bos:
        tokenizer._tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return load_template(tokenizer, recipe.prompt.template, recipe.folder)


def spoken(*turns: tuple[Any, str]) -> Conversation:
    return Conversation("r", tuple(Turn(role, text) for role, text in turns), Origin("rows.jsonl", 1))


@pytest.mark.parametrize(("adds_bos", "begin"), [(True, "<s>"), (False, "")])
def test_the_answer_and_its_end_are_trained_on(adds_bos: bool, begin: str) -> None:
    template = alpaca_template(adds_bos=adds_bos)
    row = spoken(("user", "What is 2 x 3?\n\nInput."), ("assistant", "Six."))
    prompt_text = f"{begin}{OPENING}### Instruction:\nWhat is 2 x 3?\n\nInput.\n\n### Response:\n"
    assert loss_pieces(encode(row, template), template) == [(prompt_text, False), ("Six.</s>", True)]
    assert template.tokenizer.decode(encode_prompt(row.prompt, template)) == prompt_text


def test_later_exchanges_follow_and_a_system_message_opens() -> None:
    template = alpaca_template(adds_bos=False)
    turns = [("system", "Be brief."), ("user", "a?"), ("assistant", "A."), ("user", "b?"), ("assistant", "B.")]
    assert loss_pieces(encode(spoken(*turns), template), template) == [
        ("Be brief.\n\n### Instruction:\na?\n\n### Response:\n", False),
        ("A.</s>", True),
        ("\n\n### Instruction:\nb?\n\n### Response:\n", False),
        ("B.</s>", True),
    ]


@pytest.mark.parametrize("roles", ["assistant", "user user assistant", "user system assistant", "user tool"])
def test_other_orders_are_refused(roles: str) -> None:
    with pytest.raises(ModelError, match="cannot follow"):
        alpaca_template().render(spoken(*((role, "x") for role in roles.split())).turns)


def test_every_row_of_the_sample_can_be_trained_on() -> None:
    template = alpaca_template()
    for row in ROWS["finance"][::20]:
        example = encode(row, template)
        assert loss_pieces(example, template)[-1] == (f"{row.answer}</s>", True)
