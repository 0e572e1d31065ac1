"""A Modelfile for Ollama: which GGUF file, the training template in Go's syntax, where a reply ends, greedy decoding.

Ollama reads no Jinja. What is written here is proven by running it, as Ollama would, over conversations of every shape.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.config.registry import nearest, raise_first
from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError, TunesmithError
from tunesmith.exporting.job import File, Job, Request
from tunesmith.exporting.targets._go_template import execute
from tunesmith.exporting.targets._layout import go_template, layout_of, takes_system
from tunesmith.exporting.targets._modelfile import PARAMETERS, fits, quoted, read
from tunesmith.exporting.targets._shipped import gguf_file, lacks_gguf, unknown_type
from tunesmith.models.gguf_header import read_header
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import stop_ids
from tunesmith.runs.run import write_atomic

WHERE = "export.files: ollama"
# llama.cpp's vocabularies that put a start token before a text though the file does not say so (llama-vocab.cpp)
STARTED_MODELS, STARTED_PRE = ("llama", "gemma4"), ("llama3", "llama-v3", "llama-bpe", "falcon3", "lfm2", "gemma4")
_QUESTION, _MORE = Turn("user", 'What is "{{ .System }}"?'), Turn("user", "Und où est 日本, \\U0001f600?\n\n- {x}")
_ANSWER, _RULES = Turn("assistant", "1. Open it.\n2. Tap 'Save' <b>."), Turn("system", "Be kind.\nAnswer in steps.")
SHAPES: Mapping[str, tuple[Turn, ...]] = {
    "one turn": (_QUESTION,),
    "several turns": (_QUESTION, _ANSWER, _MORE),
    "many turns": (_MORE, _ANSWER, _QUESTION, _ANSWER, _MORE, _ANSWER, _QUESTION),
    "a system message": (_RULES, _QUESTION),
    "a system message and several turns": (_RULES, _MORE, _ANSWER, _QUESTION, _ANSWER, _MORE),
}


def wrong_options(of: Any = "q4_k_m", parameters: Any = None) -> Iterator[tuple[str, str, str]]:
    """What is wrong with the options, whatever the model."""
    if wrong := unknown_type(of):
        yield "of", *wrong
    for name, value in (parameters or {}).items():
        if name not in PARAMETERS:
            yield "parameters", f"unknown parameter '{name}'", nearest(str(name), PARAMETERS)
            continue
        each = value if name == "stop" and isinstance(value, list) else [value]
        if not all(fits(name, one) and one != "" for one in each):
            kinds = " or ".join(kind.__name__ for kind in PARAMETERS[name])
            yield "parameters", f"'{name}' must be {kinds}, not {value!r}", "Correct it, or leave it out"


def needs(**_: Any) -> str:
    """The target whose files this one is made of."""
    return "gguf"


def validate(request: Request, *, of: str = "q4_k_m", parameters: dict | None = None) -> Iterator[TunesmithError]:  # type: ignore[type-arg]  # fmt: skip
    """Why there can be no Modelfile: no GGUF file before it, a template that Go's syntax cannot hold."""
    yield from lacks_gguf(request, of, of="ollama")
    try:
        layout_of(request.job.template)
        if request.job.system:
            _value(request.job.system, "the system message", "prompt.system")
    except ModelError as error:
        yield error


def write(job: Job, *, of: str = "q4_k_m", parameters: dict | None = None) -> list[File]:  # type: ignore[type-arg]
    """`of`: the type of the GGUF file, which gguf must have written; `parameters`: Ollama's, over the evaluated ones.

    Raises ModelError where the training template cannot be written in Go's syntax, RecipeError for a type or a
    parameter that does not exist.
    """
    raise_first(wrong_options(of, parameters), WHERE)
    given = parameters or {}
    model = gguf_file(job, of, of="ollama", option="of")
    text = _template(job.template, _start(model, job.template))
    path = job.out("ollama") / "Modelfile"
    write_atomic(path, "".join(f"{line}\n" for line in _lines(job, model, text, given)))
    name = shlex.quote(job.name)
    command = f"ollama create {name} -f {shlex.quote(str(path))} && ollama run {name}"
    return [File("ollama", path, commands={"ollama": command}, notes=_notes(job.template))]


def check(job: Job, file: File) -> list[str]:
    """What is wrong with the Modelfile: read again by Ollama's rules, its template run, its file opened."""
    try:
        found = list(read(file.path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return [f"the Modelfile cannot be read: {error}"]
    values = {name: [value for each, value in found if each == name] for name, _ in found}
    for name in ("from", "template"):
        if len(values.get(name, [])) != 1:
            return [f"the Modelfile has {len(values.get(name, []))} lines {name.upper()}, not one"]
    wrong = [
        f"unknown command {name.upper()}"
        for name in values
        if name not in ("from", "template", "system") and " " not in name
    ]
    if values.get("system", []) != ([job.system] if job.system else []):
        wrong.append("the system message is not the recipe's")
    wrong += _wrong_parameters(values)
    wrong += [f"no PARAMETER stop {stop!r}" for stop in _stops(job) if stop not in values.get("parameter stop", [])]
    # by its words: the Modelfile may not be in its place yet, and a folder that is not there has no ".."
    model = Path(os.path.normpath(job.folder / "ollama" / values["from"][0]))
    try:
        return [*wrong, *differences(job.template, values["template"][0], _start(model, job.template))]
    except TunesmithError as error:
        return [*wrong, str(error)]


def differences(template: Template, text: str, start: str) -> list[str]:
    """Where the Go template `text`, `start` in front, renders a conversation otherwise than the training template."""
    wrong = []
    for shape, turns in SHAPES.items():
        if turns[0].role == "system" and not takes_system(template):
            continue  # nothing to compare with; the notes say so
        expected = template.render(turns, generate=True)
        try:
            found = start + execute(text, turns)
        except ValueError as error:
            return [f"the template cannot be read: {error}"]
        if found != expected:
            at = next((n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found))
            begin = max(0, at - 20)
            wrong.append(
                f"{shape}: Ollama reads {found[begin : at + 20]!r}, training read {expected[begin : at + 20]!r}"
            )
    return wrong


def _template(template: Template, start: str) -> str:
    layout = layout_of(template)
    try:
        text = go_template(layout, start)
    except ValueError:
        what = f"the GGUF file puts {start!r} before each text, which the training template does not begin with"
        raise ModelError(what, where=template.source, next="Begin prompt.template with {{ bos_token }}") from None
    if wrong := differences(template, text, start):
        what = f"the chat template cannot be written for Ollama: {wrong[0]}"
        raise ModelError(what, where=template.source, next="Ship gguf, whose file keeps the template itself")
    return text


def _start(model: Path, template: Template) -> str:
    """The text of the start token, where the runtime puts it before each text by itself; '' where it does not."""
    known = read_header(model, values=False).metadata
    usual = known.get("tokenizer.ggml.model") in STARTED_MODELS or known.get("tokenizer.ggml.pre") in STARTED_PRE
    return str(template.tokenizer.bos_token or "") if known.get("tokenizer.ggml.add_bos_token", usual) else ""


def _lines(job: Job, model: Path, template: str, given: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {job.name} for Ollama, decoding as it was evaluated: the likeliest token, up to {job.limit} tokens"
    for note in _notes(job.template).values():
        yield f"# {note}"
    yield f"FROM ../gguf/{model.name}"
    yield f"TEMPLATE {_value(template, 'the chat template', job.template.source)}"
    if job.system:
        yield f"SYSTEM {_value(job.system, 'the system message', 'prompt.system')}"
    greedy = {"temperature": 0, "top_k": 1, "repeat_penalty": 1, "num_predict": job.limit, "num_ctx": job.context}
    for name, value in {**greedy, **{name: value for name, value in given.items() if name != "stop"}}.items():
        yield f"PARAMETER {name} {str(value).lower()}"
    more = given.get("stop", [])
    for stop in dict.fromkeys([*_stops(job), *([more] if isinstance(more, str) else more)]):
        yield f"PARAMETER stop {_value(stop, f'the stop text {stop!r}', 'evaluate.stop')}"


def _value(text: str, what: str, where: str) -> str:
    try:
        return quoted(text)
    except ValueError as error:
        raise ModelError(f"{what} cannot be written for Ollama: it {error}", where=where, next="Ship gguf") from None


def _stops(job: Job) -> list[str]:
    """The texts that end a reply: the stop tokens', then the recipe's own."""
    tokens = [job.template.tokenizer.decode([token], skip_special_tokens=False) for token in stop_ids(job.template)]
    return list(dict.fromkeys([*tokens, *job.stop]))


def _wrong_parameters(values: Mapping[str, list[str]]) -> list[str]:
    wrong = []
    for name, found in values.items():
        key = name.removeprefix("parameter ")
        if key == name:
            continue
        if key not in PARAMETERS:
            wrong.append(f"unknown parameter {key}")
        elif key != "stop":
            wrong += [f"{key} is {value!r}, {len(found)} times"] if not (value := found[0]) or len(found) > 1 else []
            wrong += [] if _readable(key, value) else [f"{key} is {value!r}, which is of another type"]
    return wrong


def _readable(name: str, value: str) -> bool:
    if bool in PARAMETERS[name]:
        return value in ("true", "false")
    try:
        (float if float in PARAMETERS[name] else int)(value)
    except ValueError:
        return False
    return True


def _notes(template: Template) -> dict[str, str]:
    """What Ollama does otherwise than training did, for people."""
    notes = {}
    if not takes_system(template):
        notes["system"] = "the training template takes no system message; Ollama drops one without a word"
    blank = [Turn("user", " a\n")]
    if template.render(blank, generate=True) == template.render([Turn("user", "a")], generate=True):
        notes["blanks"] = "training cut blanks around a text, which Ollama keeps"
    return notes
