"""The model card: README.md for a model repository, from the facts that the report tells.

A card is published, so nothing goes into it that names a machine's folders, a person or a row. Numbers and the
catalogues' names are taken as they are; every other text goes through `bare`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith.config.recipe import Recipe
from tunesmith.data.hub import parse
from tunesmith.data.privacy import find_personal, find_secrets
from tunesmith.errors import DataError, ModelError
from tunesmith.planning.autograd import show_bytes
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import stop_ids
from tunesmith.reporting.html_page import number, render
from tunesmith.reporting.replies import title
from tunesmith.reporting.run_report import limits as limits_of

REMOVED = "[removed]"
PRIVATE = ("email", "phone", "card", "iban", "ssn", "ip")
SPOKEN = 0.1  # share of the judged answers from which a language is named: below, the guess is often wrong
LANGUAGE = re.compile(r"[a-z]{2,3}")  # what is no code, such as 'Greek', is a script
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
    seals: Mapping[str, dict[str, Any]],
    template: Template | None,
    license: str = "",
) -> str:
    """The card of the run in `folder`, as Markdown with the hub's YAML in front.

    `seals`: of prepare, train and evaluate. `template`: what the model was trained with, None where it is not known.
    The system message that the recipe sets stands in the card, because the model is not used rightly without it; texts
    of rows and replies do not. Raises OSError or ValueError where a file of the run cannot be read.
    """
    scores, audit, machine, plan = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("scores", "audit", "machine", "plan")
    )
    known = [folder, folder.resolve(), recipe.folder, Path.home(), Path.cwd()]
    hidden = sorted({str(path) for path in known if len(path.parts) > 1}, key=len, reverse=True)
    base, languages = {**_base(recipe), "loader": plan.get("loader", CAUSAL)}, _languages(audit)
    return render(
        "card.md",
        front=_raw(_front(recipe, base, languages, license)),
        name=_words(recipe.name, hidden),
        about=_words(recipe.about.rstrip("."), hidden),
        base=_raw(base["said"]),
        bits=recipe.base.bits,
        verdict=_words(scores["verdict"], hidden),
        audit=audit,
        rows=_rows(audit, hidden),
        source=_raw(_source(recipe, audit)),
        personal=_personal(audit),
        settings={name: _words(value, hidden) for name, value in _settings(recipe).items()},
        training=_training(machine, plan, seals, hidden),
        sections=_results(scores, hidden),
        limits=[_words(text, hidden) for text in limits_of(scores, audit, recipe)],
        snippet=_raw(_snippet(recipe, base, template, str(machine.get("precision")), hidden)),
        template_known=template is not None,
        own_template=_own(template),
        unknown=[_words(text, hidden) for text in _unknown(audit, languages, license, base)],
    )


def bare(text: str, hidden: Sequence[str] = ()) -> str:
    """`text` with `[removed]` for paths, keys, passwords, and the addresses and numbers of people.

    `hidden` are strings to remove whatever they look like: folders whose names have blanks.
    """
    for each in hidden:
        text = re.sub(re.escape(each) + r"[^\s'\"`<>|,;]*", REMOVED, text)
    text = _PATH.sub(REMOVED, text)
    for find in (find_secrets, lambda said: find_personal(said, kinds=PRIVATE)):
        for span in reversed(find(text)):
            text = text[: span.start] + REMOVED + text[span.end :]
    return text


def _words(value: Any, hidden: Sequence[str]) -> Any:
    """A text for Markdown: bare, on one line, and nothing in it is markup."""
    text = bare(" ".join(str(value).split()), hidden).replace("&", "&amp;").replace("<", "&lt;")
    return _raw(_MARKUP.sub(r"\\\1", text).replace(r"\[removed\]", REMOVED))


def _raw(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)  # noqa: S704  (Markdown of our own making; foreign text went through _words)


# --- what it is ----------------------------------------------------------------------------------------------


def _base(recipe: Recipe) -> dict[str, str]:
    """How the base is told: `said` in words, `hub` its name there or '', `gguf` its file or ''."""
    model = recipe.base.model
    if found := PACKAGE.fullmatch(model):
        said = f"`{found['file']}` of the Python package `{found['package']}` {found['version']}"
        return {"said": said, "hub": "", "gguf": found["file"]}
    if (hub := HUB_FILE.fullmatch(model)) and not recipe.path(model).exists():
        page = f"https://huggingface.co/{hub['repo']}"
        return {"said": f"`{hub['file']}` of [{hub['repo']}]({page})", "hub": hub["repo"], "gguf": hub["file"]}
    if model.lower().endswith(".gguf"):
        return {"said": "a GGUF file, which has no public name here", "hub": "", "gguf": Path(model).name}
    if HUB_NAME.fullmatch(model) and not recipe.path(model).exists():
        revision = (
            f", revision `{recipe.base.revision}`" if re.fullmatch(r"[\w./-]+", recipe.base.revision or "") else ""
        )
        return {"said": f"[{model}](https://huggingface.co/{model}){revision}", "hub": model, "gguf": ""}
    return {"said": "a model in a folder, which has no public name here", "hub": "", "gguf": ""}


def _front(recipe: Recipe, base: Mapping[str, str], languages: Sequence[str], license: str) -> str:
    """The hub's YAML: only what is known."""
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
    found = audit.get("profile", {}).get("languages", {})
    enough = SPOKEN * sum(found.values())
    return [name for name, count in found.items() if LANGUAGE.fullmatch(name) and count >= enough]


def _hub_sources(recipe: Recipe) -> list[str]:
    sources = [recipe.data.source] if isinstance(recipe.data.source, str) else recipe.data.source
    found = []
    for source in sources:
        if source.startswith("hub:"):
            try:
                found.append(parse(source).owner_name)
            except DataError:  # refused when it was read; nothing to tell
                continue
    return list(dict.fromkeys(found))


def _source(recipe: Recipe, audit: Mapping[str, Any]) -> str:
    sources = [recipe.data.source] if isinstance(recipe.data.source, str) else recipe.data.source
    told = [f"[{name}](https://huggingface.co/datasets/{name})" for name in _hub_sources(recipe)]
    if any(not source.startswith("hub:") for source in sources):
        files = len(audit.get("sources", [])) or len(sources)
        told.append(
            "files that are not published with this card"
            if files > 1
            else "a file that is not published with this card"
        )
    return " and ".join(told)


def _rows(audit: Mapping[str, Any], hidden: Sequence[str]) -> list[tuple[str, int]]:
    """What became of the rows: words and counts that add up to the rows read."""
    check = {name: name.replace("_", " ") for name in (*audit["dropped"], *audit["quarantined"])}
    told = [(f"left out: {check[name]}", count) for name, count in audit["dropped"].items()]
    told += [(f"set aside: {check[name]}", count) for name, count in audit["quarantined"].items()]
    told += [("not drawn", audit["not_drawn"])] if audit.get("not_drawn") else []
    parts = {
        "train": "to learn from",
        "valid": "to watch the training",
        "test": "to test",
        "unseen": "to test, of groups never seen",
    }
    told += [(words, audit["parts"][part]) for part, words in parts.items() if audit["parts"].get(part)]
    return [(_words(words, hidden), count) for words, count in told]


def _personal(audit: Mapping[str, Any]) -> list[str]:
    """What is known of personal data and keys in the rows. Values are not told: nobody wrote them down."""
    said = []
    for check, what in (("personal", "personal data"), ("secrets", "keys and passwords")):
        found = audit["checks"].get(check)
        if found is None:
            said.append(f"{what[:1].upper()}{what[1:]} were not looked for.")
            continue
        rows, dropped = found["rows"], audit["dropped"].get(check, 0) + audit["quarantined"].get(check, 0)
        left = f" Of these rows {dropped:,} were left out." if dropped else ""
        said.append(
            f"{rows:,} of {audit['read']:,} rows were found to hold {what}.{left}" if rows else f"No {what} were found."
        )
    if stand_ins := audit["mended"].get("stand_ins"):
        said.append(f"{stand_ins:,} values of personal data were replaced before training.")
    return said


# --- how it was made -------------------------------------------------------------------------------------------


def _settings(recipe: Recipe) -> dict[str, Any]:
    adapter, train, prompt = recipe.adapter, recipe.train, recipe.prompt
    layers = "all linear layers of the decoder" if adapter.layers == "all" else ", ".join(adapter.layers)
    told: dict[str, Any] = {
        "Adapter": f"{'DoRA' if adapter.dora else 'LoRA'}, rank {adapter.rank}, alpha {adapter.alpha:g}, on {layers}",
        "Dropout": f"{adapter.dropout:g}",
        "Start": adapter.start.name,
        "Base weights": "4 bits (NF4, double quantisation), frozen" if recipe.base.bits == 4 else "16 bits, frozen",
        "Learnt": "the answers' tokens" if prompt.learn == "answer" else "every token",
        "Longest row": f"{prompt.max_tokens:,} tokens",
        "Epochs": train.epochs,
        "Batch": f"{train.batch} a step",
        "Learning rate": f"{train.learning_rate:g}, {train.schedule.name}, warm-up {train.warmup:g}",
        "Optimizer": f"{train.optimizer.name}, decay {train.weight_decay:g}, gradients clipped at {train.clip:g}",
        "Seed": recipe.seed,
    }
    return told


def _training(
    machine: Mapping[str, Any], plan: Mapping[str, Any], seals: Mapping[str, dict[str, Any]], hidden: Sequence[str]
) -> dict[str, Any]:
    """How the training went: steps, time, memory, machine, versions."""
    seal = seals["train"]
    summary = seal["summary"]
    versions = ", ".join(f"{name} {value}" for name, value in machine.get("versions", {}).items())
    told = {
        "Steps": f"{summary['steps']:,}, {summary['tokens']:,} tokens",
        "Kept": _kept(summary),
        "Time": f"{seal['seconds']:,.0f} s" if seal.get("seconds") is not None else "",
        "Memory": f"{show_bytes(plan['measured'])} at most" if plan.get("measured") else "",
        "Machine": f"{machine['name']} ({machine['device']}), {machine['precision']}",
        "Versions": versions,
        "Base fingerprint": str(seal.get("weights", ""))[:16],
        "Adapter fingerprint": str(seal["files"].get("adapter", ""))[:16],
    }
    return {name: _words(value, hidden) for name, value in told.items() if value}


def _kept(summary: Mapping[str, Any]) -> str:
    step, loss = summary.get("best_step"), summary.get("best_loss")
    lowest = f" ({loss:.3f})" if isinstance(loss, float) else ""
    return f"the adapter of step {step:,}, where the validation loss was lowest{lowest}" if step else ""


def _results(scores: Mapping[str, Any], hidden: Sequence[str]) -> list[tuple[Any, Any, list[list[Any]]]]:
    """By part of the rows: what it is, how many rows, a line a score."""
    found = []
    for part, differences in scores["sections"].items():
        lines = []
        for name, each in differences.items():
            star = " ★" if name == scores["primary"] else ""
            ends = "–" if each.get("low") is None else f"{number(each['low'])} to {number(each['high'])}"
            lower = " (lower is better)" if each["better"] == "lower" else ""
            figures = [number(each[key]) for key in ("base", "tuned", "difference")]
            lines.append([_words(name.replace("_", " ") + lower, hidden) + star, *figures, ends, each["verdict"]])
        rows = next(iter(differences.values()))["rows"]
        found.append((_words(_upper(title(part, scores["kind"])), hidden), rows, lines))
    return found


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _unknown(audit: Mapping[str, Any], languages: Sequence[str], license: str, base: Mapping[str, str]) -> list[str]:
    said = ["What the base model had read before, the rows that were held out included, is not known."]
    if not license:
        said.append("No licence was named for the adapter. The base model's licence applies to the base model.")
    if not base["hub"]:
        said.append("The base model has no name on the hub, so this card does not link it.")
    if not languages:
        said.append("The language of the rows was not recognised.")
    if not audit["parts"].get("unseen"):
        said.append("How it does on subjects that its rows do not cover was not measured.")
    return [*said, "Nobody has tested it for harmful or unfair replies, unless the scores above say so."]


# --- how to use it ---------------------------------------------------------------------------------------------


def _snippet(
    recipe: Recipe, base: Mapping[str, str], template: Template | None, precision: str, hidden: Sequence[str]
) -> str:
    """Python that loads base and adapter as they were compared and asks one question."""
    kind = precision if precision in _TYPES else "bfloat16"
    quantised = recipe.base.bits == 4 and not base["gguf"]
    lines = ["import torch", "from peft import PeftModel"]
    names = [base["loader"], "AutoTokenizer", *(["BitsAndBytesConfig"] if quantised else [])]
    lines += [f"from transformers import {', '.join(names)}", ""]
    lines += [f"base = {base['hub'] or 'FOLDER-OF-THE-BASE-MODEL'!r}", "adapter = 'THIS-REPOSITORY'"]
    file = f", gguf_file={base['gguf']!r}" if base["gguf"] else ""
    lines += [f"tokenizer = AutoTokenizer.from_pretrained(base{file})"]
    more = f"{file}, dtype=torch.{kind}"
    if quantised:
        lines += [
            "four_bits = BitsAndBytesConfig(",
            "    load_in_4bit=True,",
            "    bnb_4bit_quant_type='nf4',",
            "    bnb_4bit_use_double_quant=True,",
            f"    bnb_4bit_compute_dtype=torch.{kind},",
            ")",
        ]
        more += ", quantization_config=four_bits"
    lines += [f"model = {base['loader']}.from_pretrained(base{more})"]
    lines += ["model = PeftModel.from_pretrained(model, adapter).eval()", ""]
    system = recipe.prompt.system
    first = [f"    {{'role': 'system', 'content': {bare(system, hidden)!r}}},"] if system else []
    lines += ["messages = [", *first, "    {'role': 'user', 'content': 'Your question'},", "]"]
    lines += _asking(recipe, template, hidden)
    return "\n".join(lines)


def _asking(recipe: Recipe, template: Template | None, hidden: Sequence[str]) -> list[str]:
    """The lines that render the messages as in training, and let the model answer until its stop token."""
    extra = ""
    lines = []
    if template is not None and not _own(template):
        if bare(template.text, hidden) == template.text:
            lines.append(f"template = {template.text!r}")
        else:
            lines.append("template = open('chat_template.jinja').read()  # the template it was trained with")
        extra = f"    chat_template=template,\n    starts_with_bos={template.starts_with_bos},\n"
    stops = _stops(template)
    ends = f", eos_token_id=tokenizer.convert_tokens_to_ids({stops!r})" if stops else ""
    return [
        *lines,
        "inputs = tokenizer.apply_chat_template(",
        "    messages,",
        *extra.rstrip("\n").split("\n")[: 2 * bool(extra)],
        "    add_generation_prompt=True,",
        "    return_tensors='pt',",
        "    return_dict=True,",
        ").to(model.device)",
        f"reply = model.generate(**inputs, max_new_tokens={recipe.evaluate.max_new_tokens}, do_sample=False{ends})",
        "print(tokenizer.decode(reply[0, inputs['input_ids'].shape[1] :], skip_special_tokens=True))",
    ]


def _own(template: Template | None) -> bool:
    """Whether the tokenizer brings the template along."""
    if template is None:
        return True
    brought = template.tokenizer.chat_template
    return bool(template.text == (brought.get("default") if isinstance(brought, dict) else brought))


def _stops(template: Template | None) -> list[str]:
    """The tokens that end a reply; none where the template is not known."""
    if template is None:
        return []
    try:
        return [str(token) for token in template.tokenizer.convert_ids_to_tokens(stop_ids(template))]
    except ModelError:
        return []
