"""Writes a Modelfile for Ollama: the GGUF file, the training template in Go's syntax, stop strings, greedy decoding.

Ollama does not read Jinja. The Go template is verified by rendering conversations of several shapes as Ollama does.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.config.registry import nearest, raise_first
from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError, TunesmithError
from tunesmith.exporting.job import File, Job, Request
from tunesmith.exporting.targets._go_template import accepts_system, execute, find_layout, go_template
from tunesmith.exporting.targets._shipped import find_gguf, missing_gguf_errors, type_error
from tunesmith.models.gguf_header import read_header
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import stop_ids
from tunesmith.runs.run import write_atomic

PARAMETERS: Mapping[str, tuple[type, ...]] = {  # api/types.go: Options and Runner
    "num_keep": (int,), "seed": (int,), "num_predict": (int,), "top_k": (int,), "top_p": (float, int),
    "min_p": (float, int), "typical_p": (float, int), "repeat_last_n": (int,), "temperature": (float, int),
    "repeat_penalty": (float, int), "presence_penalty": (float, int), "frequency_penalty": (float, int),
    "stop": (str,), "num_ctx": (int,), "num_batch": (int,), "num_gpu": (int,), "main_gpu": (int,),
    "use_mmap": (bool,), "num_thread": (int,), "draft_num_predict": (int,),
}  # fmt: skip
COMMANDS = {
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message",
    "requires",
}  # fmt: skip
_TRIPLE_QUOTES = '"""'


def has_type(name: str, value: Any) -> bool:
    """Returns whether `value` has a type of the parameter `name`, one of PARAMETERS."""
    kinds = PARAMETERS[name]
    return isinstance(value, kinds) and (isinstance(value, bool) == (bool in kinds))


def quote(text: str) -> str:
    """Quotes `text` as a value. Raises ValueError if Ollama's parser would not return the same text."""
    value = f"{_TRIPLE_QUOTES}{text}{_TRIPLE_QUOTES}" if {*'"\n'} & {*text} else f'"{text}"'
    try:
        parsed_back = list(parse(f"TEMPLATE {value}\n")) == [("template", text)]
    except ValueError:
        parsed_back = False
    if not parsed_back:
        raise ValueError("contains three quotes at the end of a line, or an unprintable character")
    return value


def parse(text: str) -> Iterator[tuple[str, str]]:
    """Yields (command in lower case, value) in order; a parameter's command is `parameter NAME`.

    Raises ValueError, with the line number, for text that Ollama's parser refuses.
    """
    lines = iter(enumerate(text.split("\n"), 1))
    for number, line in lines:
        stripped = line.lstrip(" \t")
        if not stripped or stripped.startswith("#"):
            continue
        name, value = _split_word(stripped)
        name = name.lower()
        if name not in COMMANDS:
            raise ValueError(f"line {number}: unknown command '{name}'")
        if name == "parameter":
            key, value = _split_word(value.lstrip(" \t"))
            name = f"parameter {key}"
        content = _unquote(value := _printable(value))
        while content is None:
            _, next_line = next(lines, (0, None))
            if next_line is None:
                raise ValueError(f"line {number}: its quotes are not closed")
            value += "\n" + _printable(next_line)
            content = _unquote(value)
        if not content:
            raise ValueError(f"line {number}: '{name}' has no value")
        yield name, content


def _split_word(text: str) -> tuple[str, str]:
    """Returns the first word, and the text after the blank that follows it."""
    word, *tail = re.split(r"[ \t]", text, maxsplit=1)
    return word, "".join(tail)


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable() or character == "\t")


def _unquote(value: str) -> str | None:
    """Returns the value without its quotes; None if they are not closed."""
    text = value.strip(" \t\n")
    for quotes in (_TRIPLE_QUOTES, '"'):
        if text.startswith(quotes):
            closed = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if closed else None
    return text


WHERE = "export.files: ollama"
# llama.cpp's vocabularies that add a start token even if the file does not set add_bos_token (llama-vocab.cpp)
BOS_MODELS, BOS_PRE_TOKENIZERS = ("llama", "gemma4"), ("llama3", "llama-v3", "llama-bpe", "falcon3", "lfm2", "gemma4")
_QUESTION, _FOLLOW_UP = Turn("user", 'What is "{{ .System }}"?'), Turn("user", "Und où est 日本, \\U0001f600?\n\n- {x}")
_ANSWER, _SYSTEM = Turn("assistant", "1. Open it.\n2. Tap 'Save' <b>."), Turn("system", "Be kind.\nAnswer in steps.")
SHAPES: Mapping[str, tuple[Turn, ...]] = {
    "one turn": (_QUESTION,),
    "several turns": (_QUESTION, _ANSWER, _FOLLOW_UP),
    "many turns": (_FOLLOW_UP, _ANSWER, _QUESTION, _ANSWER, _FOLLOW_UP, _ANSWER, _QUESTION),
    "a system message": (_SYSTEM, _QUESTION),
    "a system message and several turns": (_SYSTEM, _FOLLOW_UP, _ANSWER, _QUESTION, _ANSWER, _FOLLOW_UP),
}


def wrong_options(of: Any = "q4_k_m", parameters: Any = None) -> Iterator[tuple[str, str, str]]:
    """Yields problems of the options that do not depend on the model."""
    if problem := type_error(of):
        yield "of", *problem
    for name, value in (parameters or {}).items():
        if name not in PARAMETERS:
            yield "parameters", f"unknown parameter '{name}'", nearest(str(name), PARAMETERS)
            continue
        values = value if name == "stop" and isinstance(value, list) else [value]
        if not all(has_type(name, item) and item != "" for item in values):
            types = " or ".join(kind.__name__ for kind in PARAMETERS[name])
            yield "parameters", f"'{name}' must be {types}, not {value!r}", "Correct it, or leave it out"


def needs(**_: Any) -> str:
    """Returns the target whose files this one uses."""
    return "gguf"


def validate(request: Request, *, of: str = "q4_k_m", parameters: dict | None = None) -> Iterator[TunesmithError]:  # type: ignore[type-arg]  # fmt: skip
    """Yields why there can be no Modelfile: no GGUF file is written before it, or Go cannot express the template."""
    yield from missing_gguf_errors(request, of, target="ollama")
    try:
        find_layout(request.job.template)
        if request.job.system:
            _quote_value(request.job.system, "the system message", "prompt.system")
    except ModelError as error:
        yield error


def write(job: Job, *, of: str = "q4_k_m", parameters: dict | None = None) -> list[File]:  # type: ignore[type-arg]
    """Writes the Modelfile for the GGUF file of type `of`; `parameters` are Ollama's and override the evaluated ones.

    Raises ModelError if gguf has not written the file or Go's syntax cannot express the training template, RecipeError
    for an unknown type or parameter.
    """
    raise_first(wrong_options(of, parameters), WHERE)
    options = parameters or {}
    model = find_gguf(job, of, target="ollama", option="of")
    text = _template(job.template, _bos_text(model, job.template))
    path = job.out("ollama") / "Modelfile"
    write_atomic(path, "".join(f"{line}\n" for line in _lines(job, model, text, options)))
    name = shlex.quote(job.name)
    command = f"ollama create {name} -f {shlex.quote(str(path))} && ollama run {name}"
    return [File("ollama", path, commands={"ollama": command}, notes=_notes(job.template))]


def check(job: Job, file: File) -> list[str]:
    """Returns problems of the Modelfile: parses it by Ollama's rules, renders its template and opens its GGUF file."""
    try:
        commands = list(parse(file.path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return [f"the Modelfile cannot be read: {error}"]
    values = {name: [value for other_name, value in commands if other_name == name] for name, _ in commands}
    for name in ("from", "template"):
        if len(values.get(name, [])) != 1:
            return [f"the Modelfile has {len(values.get(name, []))} lines {name.upper()}, not one"]
    problems = [
        f"unknown command {name.upper()}"
        for name in values
        if name not in ("from", "template", "system") and " " not in name
    ]
    if values.get("system", []) != ([job.system] if job.system else []):
        problems.append("the system message differs from prompt.system")
    problems += _parameter_problems(values)
    problems += [f"no PARAMETER stop {stop!r}" for stop in _stops(job) if stop not in values.get("parameter stop", [])]
    # lexically: the Modelfile may still be staged, and ".." of a folder that does not exist cannot be resolved
    model = Path(os.path.normpath(job.folder / "ollama" / values["from"][0]))
    try:
        return [*problems, *template_differences(job.template, values["template"][0], _bos_text(model, job.template))]
    except TunesmithError as error:
        return [*problems, str(error)]


def template_differences(template: Template, text: str, bos: str) -> list[str]:
    """Returns where `bos` and the Go template `text` render a conversation differently from the training template."""
    problems = []
    for shape, turns in SHAPES.items():
        if turns[0].role == "system" and not accepts_system(template):
            continue  # nothing to compare with; the notes mention it
        expected = template.render(turns, generate=True)
        try:
            rendered = bos + execute(text, turns)
        except ValueError as error:
            return [f"the template cannot be read: {error}"]
        if rendered != expected:
            at = next((n for n, (a, b) in enumerate(zip(rendered, expected, strict=False)) if a != b), len(rendered))
            begin = max(0, at - 20)
            problems.append(
                f"{shape}: Ollama reads {rendered[begin : at + 20]!r}, training read {expected[begin : at + 20]!r}"
            )
    return problems


def _template(template: Template, bos: str) -> str:
    layout = find_layout(template)
    try:
        text = go_template(layout, bos)
    except ValueError:
        problem = f"the GGUF file adds {bos!r} to each text, but the training template does not begin with it"
        raise ModelError(problem, where=template.source, next="Begin prompt.template with {{ bos_token }}") from None
    if differences := template_differences(template, text, bos):
        problem = f"the chat template cannot be written for Ollama: {differences[0]}"
        raise ModelError(problem, where=template.source, next="Use gguf, whose file contains the original template")
    return text


def _bos_text(model: Path, template: Template) -> str:
    """Returns the start token's text if the runtime adds it to each text; '' if it does not."""
    header = read_header(model, values=False).metadata
    default = header.get("tokenizer.ggml.model") in BOS_MODELS or header.get("tokenizer.ggml.pre") in BOS_PRE_TOKENIZERS
    return str(template.tokenizer.bos_token or "") if header.get("tokenizer.ggml.add_bos_token", default) else ""


def _lines(job: Job, model: Path, template: str, options: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {job.name} for Ollama, with the decoding of the evaluation: greedy, up to {job.limit} tokens"
    for note in _notes(job.template).values():
        yield f"# {note}"
    yield f"FROM ../gguf/{model.name}"
    yield f"TEMPLATE {_quote_value(template, 'the chat template', job.template.source)}"
    if job.system:
        yield f"SYSTEM {_quote_value(job.system, 'the system message', 'prompt.system')}"
    greedy = {"temperature": 0, "top_k": 1, "repeat_penalty": 1, "num_predict": job.limit, "num_ctx": job.context}
    for name, value in {**greedy, **{name: value for name, value in options.items() if name != "stop"}}.items():
        yield f"PARAMETER {name} {str(value).lower()}"
    more_stops = options.get("stop", [])
    for stop in dict.fromkeys([*_stops(job), *([more_stops] if isinstance(more_stops, str) else more_stops)]):
        yield f"PARAMETER stop {_quote_value(stop, f'the stop string {stop!r}', 'prompt.stop')}"


def _quote_value(text: str, description: str, where: str) -> str:
    try:
        return quote(text)
    except ValueError as error:
        raise ModelError(
            f"{description} cannot be written for Ollama: it {error}", where=where, next="Use gguf instead"
        ) from None


def _stops(job: Job) -> list[str]:
    """Returns the stop strings: the texts of the stop tokens, then the recipe's own."""
    tokens = [job.template.tokenizer.decode([token], skip_special_tokens=False) for token in stop_ids(job.template)]
    return list(dict.fromkeys([*tokens, *job.stop]))


def _parameter_problems(values: Mapping[str, list[str]]) -> list[str]:
    problems = []
    for name, occurrences in values.items():
        key = name.removeprefix("parameter ")
        if key == name:
            continue
        if key not in PARAMETERS:
            problems.append(f"unknown parameter {key}")
        elif key != "stop":
            problems += (
                [f"{key} is {value!r}, {len(occurrences)} times"]
                if not (value := occurrences[0]) or len(occurrences) > 1
                else []
            )
            problems += [] if _parses_as(key, value) else [f"{key} is {value!r}, which has the wrong type"]
    return problems


def _parses_as(name: str, value: str) -> bool:
    if bool in PARAMETERS[name]:
        return value in ("true", "false")
    try:
        (float if float in PARAMETERS[name] else int)(value)
    except ValueError:
        return False
    return True


def _notes(template: Template) -> dict[str, str]:
    """Returns what Ollama does differently from training, as notes for users."""
    notes = {}
    if not accepts_system(template):
        notes["system"] = "the training template accepts no system message; Ollama silently drops one"
    blank = [Turn("user", " a\n")]
    if template.render(blank, generate=True) == template.render([Turn("user", "a")], generate=True):
        notes["blanks"] = "training stripped whitespace around each message; Ollama keeps it"
    return notes
