"""People's names found by named-entity recognition: spaCy's, with the extra `ner` and a pipeline that is installed.

A pipeline is named, never pointed at: its folder may hold code, and only a package that was installed as a spaCy
pipeline is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.metadata import entry_points
from itertools import groupby
from typing import Any

from tunesmith.config.registry import missing_extra
from tunesmith.data.privacy_patterns import DIGIT, TITLES, Span
from tunesmith.errors import RecipeError

WHERE = "data.checks, personal.ner"
PEOPLE = frozenset({"PERSON", "PER", "PRS", "persName"})  # OntoNotes, WikiNER, the Swedish SUC, the Polish NKJP
NEEDLESS = (  # components of spaCy's own pipelines that entities do without
    *("tagger", "morphologizer", "parser", "senter", "sentencizer", "attribute_ruler", "lemmatizer"),
    *("trainable_lemmatizer", "textcat", "textcat_multilabel", "entity_linker", "spancat"),
)
VECTORS = ("tok2vec", "transformer")  # needed only where the entities' component listens to them
BATCH = 64  # texts
PIECE = 50_000  # characters; spaCy refuses 1,000,000 and its memory grows with the text
WORD = re.compile(r"[^\s,;]+")
EDGE = " \t.,;:!?\"'`’‘“”()[]{}<>*_-–—•|/"


def find_names(texts: Iterable[str], *, model: str) -> Iterator[list[Span]]:
    """People's names in each of `texts`, in order: spans of the kind `name`, without titles and possessives.

    `model` is the name of an installed spaCy pipeline, loaded once a process. Raises MissingExtra without spaCy,
    RecipeError for a pipeline that is not installed or names no people.
    """
    nlp = _pipeline(model)
    pieces = ((piece, (place, start)) for place, text in enumerate(texts) for start, piece in _pieces(text))
    read = nlp.pipe(pieces, as_tuples=True, batch_size=BATCH)
    for _, docs in groupby(read, key=lambda each: each[1][0]):
        yield [span for doc, (_, start) in docs for span in _people(doc, start)]


@lru_cache(maxsize=1)
def _pipeline(model: str) -> Any:
    try:
        from spacy.util import load_model_from_package
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "spacy":  # spaCy is there and something of its own is not
            raise
        raise missing_extra("spacy", "ner", where=WHERE) from error
    if not entry_points(group="spacy_models", name=model):
        raise RecipeError(
            f"no spaCy pipeline '{model}' is installed",
            where=WHERE,
            next=f"python -m spacy download {model if model.isidentifier() else 'en_core_web_sm'}",
        )
    nlp = load_model_from_package(model, exclude=[*NEEDLESS])
    for name, component in nlp.pipeline:
        if name in VECTORS and not getattr(component, "listening_components", True):
            nlp.disable_pipe(name)
    labels = {label for name in nlp.pipe_names for label in nlp.pipe_labels.get(name, ())}
    if not labels & PEOPLE:
        raise RecipeError(
            f"the spaCy pipeline '{model}' names no people: none of its labels is {', '.join(sorted(PEOPLE))}",
            where=WHERE,
            next="Name one that does, such as en_core_web_sm",
        )
    return nlp


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """`text` in pieces of at most PIECE characters, cut at a blank where there is one, each with its start."""
    start = 0
    while len(text) - start > PIECE:
        blank = max(text.rfind(each, start + 1, start + PIECE) for each in " \n")
        end = blank if blank > 0 else start + PIECE
        yield start, text[start:end]
        start = end
    yield start, text[start:]


def _people(doc: Any, start: int) -> Iterator[Span]:
    for entity in doc.ents:
        if entity.label_ in PEOPLE and (span := _trimmed(entity.text, start + entity.start_char)):
            yield span


def _trimmed(text: str, start: int) -> Span | None:
    """The name in `text`, which stands at `start`: its first line, without titles, the possessive's end and signs.

    None where fewer than two letters are left, and where there is a digit: no name has one.
    """
    line = text.lstrip().split("\n")[0]
    start += len(text) - len(text.lstrip())
    words = [(word.start(), word.end()) for word in WORD.finditer(line)]
    while words and _is_title(line[slice(*words[0])]):
        words.pop(0)
    while words and _is_title(line[slice(*words[-1])]):
        words.pop()
    if not words:
        return None
    first, last = words[0][0], words[-1][1]
    bare = line[first:last].lstrip(EDGE)
    first = last - len(bare)
    name = re.sub(r"['’][sS]?$", "", bare.rstrip(EDGE)).rstrip(EDGE)
    if sum(map(str.isalpha, name)) < 2 or DIGIT.search(name):
        return None
    return Span(start + first, start + first + len(name), "name", name)


def _is_title(word: str) -> bool:
    return word.strip(EDGE).casefold() in TITLES.split()
