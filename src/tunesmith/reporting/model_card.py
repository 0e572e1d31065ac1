"""The model card: README.md for a model repository, from the same facts as the report.

A card is published, so it must not contain local paths, personal data or rows. Numbers and names from catalogs are
copied; every other text goes through `redact`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config.recipe import Recipe
from tunesmith.data.hub import parse_hub_source
from tunesmith.data.privacy import find_personal, find_secrets
from tunesmith.errors import DataError, ModelError
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import stop_ids
from tunesmith.reporting.html_page import format_number, render_page
from tunesmith.reporting.replies import part_title
from tunesmith.reporting.run_report import limitations as limits_of
from tunesmith.wording import show_bytes

REMOVED = "[removed]"
PRIVATE = ("email", "phone", "card", "iban", "ssn", "ip")
MIN_LANGUAGE_SHARE = 0.1  # least share of answers for a language to be listed; below it, detection is often wrong
LANGUAGE = re.compile(r"[a-z]{2,3}")  # other values, such as 'Greek', are scripts
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)
HUB_FILE = re.compile(
    r"(?:hub:)?(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@[\w.-]+)?/(?P<file>(?:[\w.-]+/)*[\w.+-]+\.gguf)",
    re.ASCII,
)
PACKAGE = re.compile(r"pypi:(?P<package>[\w.-]+)==(?P<version>[\w.+!-]+)/(?P<file>[\w.+-]+\.gguf)", re.ASCII)
CAUSAL = "AutoModelForCausalLM"
_END = r"[^\s'\"`<>|,;]+"
_START = (
    r"(?:(?<=[\s'\"`(=\[,;:>|])|^)"  # what stands before a path, and not before the stroke of and/or, </s>, 60 %/40 %
)
_PATH = re.compile(
    rf"(?i:file):/+{_END}|{_START}(?:~[\w.-]*)?/(?!/){_END}|(?<!\w)[A-Za-z]:[\\/]{_END}|\\\\[\w.$-]+\\{_END}",
    re.MULTILINE,
)
_MARKUP = re.compile(r"([\\`*_\[\]|#~])")
_TYPES = ("float32", "bfloat16", "float16")


def model_card(
    recipe: Recipe,
    folder: Path,
    *,
    records: Mapping[str, dict[str, Any]],
    template: Template | None,
    license: str = "",
) -> str:
    """Returns the model card of the run in `folder` as Markdown with the Hub's YAML front matter.

    `records` holds the fingerprints of prepare, train and evaluate. `template` is the chat template of training, None
    if unknown. The card contains the recipe's system message, because the model needs it, but no text of rows or
    replies. Raises OSError or ValueError if a file of the run cannot be read.
    """
    scores, audit, machine, plan = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("scores", "audit", "machine", "plan")
    )
    private_paths = [folder, folder.resolve(), recipe.folder, Path.home(), Path.cwd()]
    hidden = sorted({str(path) for path in private_paths if len(path.parts) > 1}, key=len, reverse=True)
    base, languages = {**_base(recipe), "loader": plan.get("loader", CAUSAL)}, _languages(audit)
    return render_page(
        "card.md",
        front=_raw(_front_matter(recipe, base, languages, license)),
        name=_markdown_text(recipe.name, hidden),
        about=_markdown_text(recipe.about.rstrip("."), hidden),
        base=_raw(base["text"]),
        bits=recipe.base.bits,
        verdict=_markdown_text(scores["verdict"], hidden),
        but=[_markdown_text(sentence, hidden) for sentence in scores.get("but", ())],
        audit=audit,
        rows=_rows(audit, hidden),
        source=_raw(_source(recipe, audit)),
        personal=_personal_data_notes(audit),
        settings={name: _markdown_text(value, hidden) for name, value in _settings(recipe).items()},
        training=_training(machine, plan, records, hidden),
        sections=_results(scores, hidden),
        limits=[_markdown_text(text, hidden) for text in limits_of(scores, audit, recipe)],
        snippet=_raw(_snippet(recipe, base, template, str(machine.get("precision")), hidden)),
        template_known=template is not None,
        own_template=_is_tokenizers_template(template),
        unknown=[_markdown_text(text, hidden) for text in _unknown_facts(audit, languages, license, base)],
    )


def redact(text: str, hidden: Sequence[str] = ()) -> str:
    """Replaces paths, keys, passwords and personal data in `text` by `[removed]`.

    `hidden` are further strings to remove, such as folders with spaces in their names.
    """
    for hidden_text in hidden:
        text = re.sub(re.escape(hidden_text) + r"[^\s'\"`<>|,;]*", REMOVED, text)
    text = _PATH.sub(REMOVED, text)
    for find in (find_secrets, lambda text_: find_personal(text_, kinds=PRIVATE)):
        for span in reversed(find(text)):
            text = text[: span.start] + REMOVED + text[span.end :]
    return text


def _markdown_text(value: Any, hidden: Sequence[str]) -> Any:
    """Returns a text for Markdown: without private data, on one line, with markup escaped."""
    text = redact(" ".join(str(value).split()), hidden).replace("&", "&amp;").replace("<", "&lt;")
    return _raw(_MARKUP.sub(r"\\\1", text).replace(r"\[removed\]", REMOVED))


def _raw(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)  # noqa: S704  (our own Markdown; other text went through _markdown_text)


# --- base model and data -------------------------------------------------------------------------------------


def _base(recipe: Recipe) -> dict[str, str]:
    """Describes the base model: `text` in words, `hub` its name on the Hub or '', `gguf` its file or ''."""
    model = recipe.base.model
    if package := PACKAGE.fullmatch(model):
        description = f"`{package['file']}` of the Python package `{package['package']}` {package['version']}"
        return {"text": description, "hub": "", "gguf": package["file"]}
    if (hub := HUB_FILE.fullmatch(model)) and not recipe.path(model).exists():
        page = f"https://huggingface.co/{hub['repo']}"
        return {"text": f"`{hub['file']}` of [{hub['repo']}]({page})", "hub": hub["repo"], "gguf": hub["file"]}
    if model.lower().endswith(".gguf"):
        return {"text": "a local GGUF file without a public name", "hub": "", "gguf": Path(model).name}
    if HUB_NAME.fullmatch(model) and not recipe.path(model).exists():
        revision = (
            f", revision `{recipe.base.revision}`" if re.fullmatch(r"[\w./-]+", recipe.base.revision or "") else ""
        )
        return {"text": f"[{model}](https://huggingface.co/{model}){revision}", "hub": model, "gguf": ""}
    return {"text": "a local model without a public name", "hub": "", "gguf": ""}


def _front_matter(recipe: Recipe, base: Mapping[str, str], languages: Sequence[str], license: str) -> str:
    """Returns the Hub's YAML front matter, without unknown fields."""
    tags = ["tunesmith", "lora", *(["qlora"] if recipe.base.bits == 4 else [])]
    plain: dict[str, Any] = {
        "base_model": base["hub"],
        "datasets": _hub_sources(recipe),
        "language": list(languages),
        "license": license,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    return yaml.safe_dump({key: value for key, value in plain.items() if value}, sort_keys=False, allow_unicode=True)


def _languages(audit: Mapping[str, Any]) -> list[str]:
    counts = audit.get("profile", {}).get("languages", {})
    enough = MIN_LANGUAGE_SHARE * sum(counts.values())
    return [name for name, count in counts.items() if LANGUAGE.fullmatch(name) and count >= enough]


def _hub_sources(recipe: Recipe) -> list[str]:
    sources = [recipe.data.source] if isinstance(recipe.data.source, str) else recipe.data.source
    names = []
    for source in sources:
        if source.startswith("hub:"):
            try:
                names.append(parse_hub_source(source).owner_name)
            except DataError:  # not a valid name, so there is nothing to link
                continue
    return list(dict.fromkeys(names))


def _source(recipe: Recipe, audit: Mapping[str, Any]) -> str:
    sources = [recipe.data.source] if isinstance(recipe.data.source, str) else recipe.data.source
    descriptions = [f"[{name}](https://huggingface.co/datasets/{name})" for name in _hub_sources(recipe)]
    if any(not source.startswith("hub:") for source in sources):
        files = len(audit.get("sources", [])) or len(sources)
        descriptions.append(
            "files that are not published with this card"
            if files > 1
            else "a file that is not published with this card"
        )
    return " and ".join(descriptions)


def _rows(audit: Mapping[str, Any], hidden: Sequence[str]) -> list[tuple[str, int]]:
    """Returns what happened to the rows, as descriptions and counts that add up to the rows read."""
    check_names = {name: name.replace("_", " ") for name in (*audit["dropped"], *audit["quarantined"])}
    rows = [(f"dropped: {check_names[name]}", count) for name, count in audit["dropped"].items()]
    rows += [(f"quarantined: {check_names[name]}", count) for name, count in audit["quarantined"].items()]
    rows += [("not drawn", audit["not_drawn"])] if audit.get("not_drawn") else []
    parts = {
        "train": "training",
        "valid": "validation",
        "test": "test",
        "unseen": "test, of groups never seen",
    }
    rows += [(words, audit["parts"][part]) for part, words in parts.items() if audit["parts"].get(part)]
    return [(_markdown_text(words, hidden), count) for words, count in rows]


def _personal_data_notes(audit: Mapping[str, Any]) -> list[str]:
    """Returns sentences on personal data and keys in the rows, without any of the values."""
    sentences = []
    for check, kind in (("personal", "personal data"), ("secrets", "keys and passwords")):
        check_result = audit["checks"].get(check)
        if check_result is None:
            sentences.append(f"{kind[:1].upper()}{kind[1:]} were not searched for.")
            continue
        rows, dropped = check_result["rows"], audit["dropped"].get(check, 0) + audit["quarantined"].get(check, 0)
        left_out = f" Of these rows {dropped:,} were left out." if dropped else ""
        sentences.append(
            f"{rows:,} of {audit['read']:,} rows were found to hold {kind}.{left_out}"
            if rows
            else f"No {kind} were found."
        )
    if pseudonyms := audit["repaired"].get("pseudonyms"):
        sentences.append(f"{pseudonyms:,} values of personal data were replaced before training.")
    return sentences


# --- how it was made -------------------------------------------------------------------------------------------


def _settings(recipe: Recipe) -> dict[str, Any]:
    adapter, train, prompt = recipe.adapter, recipe.train, recipe.prompt
    layers = "all linear layers of the decoder" if adapter.layers == "all" else ", ".join(adapter.layers)
    settings: dict[str, Any] = {
        "Adapter": f"{'DoRA' if adapter.dora else 'LoRA'}, rank {adapter.rank}, alpha {adapter.alpha:g}, on {layers}",
        "Dropout": f"{adapter.dropout:g}",
        "Start": adapter.start.name,
        "Base weights": "4 bits (NF4, double quantization), frozen" if recipe.base.bits == 4 else "16 bits, frozen",
        "Tokens with loss": "the answers" if prompt.learn == "answer" else "all",
        "Longest row": f"{prompt.max_tokens:,} tokens",
        "Epochs": train.epochs,
        "Batch": f"{train.batch} a step",
        "Learning rate": f"{train.learning_rate:g}, {train.schedule.name}, warm-up {train.warmup:g}",
        "Optimizer": f"{train.optimizer.name}, decay {train.weight_decay:g}, gradients clipped at {train.clip:g}",
        "Seed": recipe.seed if recipe.train.seed is None else f"{recipe.seed}, training {recipe.train.seed}",
    }
    return settings


def _training(
    machine: Mapping[str, Any], plan: Mapping[str, Any], records: Mapping[str, dict[str, Any]], hidden: Sequence[str]
) -> dict[str, Any]:
    """Returns facts about the training: steps, time, memory, machine, versions."""
    record = records["train"]
    summary = record["summary"]
    versions = ", ".join(f"{name} {value}" for name, value in machine.get("versions", {}).items())
    facts = {
        "Steps": f"{summary['steps']:,}, {summary['tokens']:,} tokens",
        "Kept": _kept_step(summary),
        "Time": f"{record['seconds']:,.0f} s" if record.get("seconds") is not None else "",
        "Memory": f"{show_bytes(plan['measured'])} at most" if plan.get("measured") else "",
        "Machine": f"{machine['name']} ({machine['device']}), {machine['precision']}",
        "Versions": versions,
        "Base fingerprint": str(record.get("weights", ""))[:16],
        "Adapter fingerprint": str(record["files"].get("adapter", ""))[:16],
    }
    return {name: _markdown_text(value, hidden) for name, value in facts.items() if value}


def _kept_step(summary: Mapping[str, Any]) -> str:
    step, loss = summary.get("best_step"), summary.get("best_loss")
    lowest = f" ({loss:.3f})" if isinstance(loss, float) else ""
    return f"the adapter of step {step:,}, with the lowest validation loss{lowest}" if step else ""


def _results(scores: Mapping[str, Any], hidden: Sequence[str]) -> list[tuple[Any, Any, list[list[Any]]]]:
    """Returns for each part of the rows its title, number of rows, and a table line per score."""
    results = []
    for part, differences in scores["sections"].items():
        lines = []
        for name, difference in differences.items():
            star = " ★" if name == scores["primary"] else ""
            low, high = difference.get("low"), difference.get("high")
            ends = "–" if low is None else f"{format_number(low)} to {format_number(high)}"
            lower = " (lower is better)" if difference["better"] == "lower" else ""
            figures = [format_number(difference[key]) for key in ("base", "tuned", "difference")]
            label = _markdown_text(name.replace("_", " ") + lower, hidden) + star
            lines.append([label, *figures, ends, difference["verdict"]])
        first = next(iter(differences.values()))
        rows = f"{first['rows']:,} of {first['asked']:,} rows measured"
        results.append((_markdown_text(_first_upper(part_title(part, scores["kind"])), hidden), rows, lines))
    return results


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _unknown_facts(
    audit: Mapping[str, Any], languages: Sequence[str], license: str, base: Mapping[str, str]
) -> list[str]:
    sentences = ["It is not known what the base model was trained on; this may include the held-out rows."]
    if not license:
        sentences.append("No license was named for the adapter. The base model's license applies to the base model.")
    if not base["hub"]:
        sentences.append("The base model has no name on the Hub, so this card does not link it.")
    if not languages:
        sentences.append("The language of the rows was not recognized.")
    if not audit["parts"].get("unseen"):
        sentences.append("Its quality on topics that its rows do not cover was not measured.")
    return [*sentences, "It was not tested for harmful or unfair replies, unless the scores above say so."]


# --- how to use it ---------------------------------------------------------------------------------------------


def _snippet(
    recipe: Recipe, base: Mapping[str, str], template: Template | None, precision: str, hidden: Sequence[str]
) -> str:
    """Returns Python code that loads base and adapter as in the evaluation and asks one question."""
    dtype = precision if precision in _TYPES else "bfloat16"
    quantized = recipe.base.bits == 4 and not base["gguf"]
    lines = ["import torch", "from peft import PeftModel"]
    names = [base["loader"], "AutoTokenizer", *(["BitsAndBytesConfig"] if quantized else [])]
    lines += [f"from transformers import {', '.join(names)}", ""]
    lines += [f"base = {base['hub'] or 'FOLDER-OF-THE-BASE-MODEL'!r}", "adapter = 'THIS-REPOSITORY'"]
    file = f", gguf_file={base['gguf']!r}" if base["gguf"] else ""
    lines += [f"tokenizer = AutoTokenizer.from_pretrained(base{file})"]
    arguments = f"{file}, dtype=torch.{dtype}"
    if quantized:
        lines += [
            "four_bits = BitsAndBytesConfig(",
            "    load_in_4bit=True,",
            "    bnb_4bit_quant_type='nf4',",
            "    bnb_4bit_use_double_quant=True,",
            f"    bnb_4bit_compute_dtype=torch.{dtype},",
            ")",
        ]
        arguments += ", quantization_config=four_bits"
    lines += [f"model = {base['loader']}.from_pretrained(base{arguments})"]
    lines += ["model = PeftModel.from_pretrained(model, adapter).eval()", ""]
    system = recipe.prompt.system
    first = [f"    {{'role': 'system', 'content': {redact(system, hidden)!r}}},"] if system else []
    lines += ["messages = [", *first, "    {'role': 'user', 'content': 'Your question'},", "]"]
    lines += _generation_lines(recipe, template, hidden)
    return "\n".join(lines)


def _generation_lines(recipe: Recipe, template: Template | None, hidden: Sequence[str]) -> list[str]:
    """Returns the code that renders the messages as in training and generates until the stop token."""
    template_arguments = ""
    lines = []
    if template is not None and not _is_tokenizers_template(template):
        if redact(template.text, hidden) == template.text:
            lines.append(f"template = {template.text!r}")
        else:
            lines.append("template = open('chat_template.jinja').read()  # the template it was trained with")
        template_arguments = f"    chat_template=template,\n    starts_with_bos={template.starts_with_bos},\n"
    stops = _stop_tokens(template)
    eos_argument = f", eos_token_id=tokenizer.convert_tokens_to_ids({stops!r})" if stops else ""
    limit = recipe.evaluate.max_new_tokens
    return [
        *lines,
        "inputs = tokenizer.apply_chat_template(",
        "    messages,",
        *template_arguments.rstrip("\n").split("\n")[: 2 * bool(template_arguments)],
        "    add_generation_prompt=True,",
        "    return_tensors='pt',",
        "    return_dict=True,",
        ").to(model.device)",
        f"reply = model.generate(**inputs, max_new_tokens={limit}, do_sample=False{eos_argument})",
        "print(tokenizer.decode(reply[0, inputs['input_ids'].shape[1] :], skip_special_tokens=True))",
    ]


def _is_tokenizers_template(template: Template | None) -> bool:
    """Returns whether the template is the tokenizer's own."""
    if template is None:
        return True
    own_template = template.tokenizer.chat_template
    return bool(template.text == (own_template.get("default") if isinstance(own_template, dict) else own_template))


def _stop_tokens(template: Template | None) -> list[str]:
    """Returns the tokens that end a reply; none if the template is not known."""
    if template is None:
        return []
    try:
        return [str(token) for token in template.tokenizer.convert_ids_to_tokens(stop_ids(template))]
    except ModelError:
        return []
