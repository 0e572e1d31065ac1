"""Finds names of people with a spaCy pipeline for named-entity recognition (extra `ner`).

A pipeline is given by name, never by path: a folder may contain code, so only installed spaCy pipelines are imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.metadata import entry_points
from itertools import groupby
from typing import Any

from tunesmith.config.extras import missing_extra
from tunesmith.data.privacy_patterns import DIGIT, TITLES, Span
from tunesmith.errors import RecipeError

SETTING = "data.checks, personal.ner"
PEOPLE = frozenset({"PERSON", "PER", "PRS", "persName"})  # OntoNotes, WikiNER, the Swedish SUC, the Polish NKJP
UNUSED_COMPONENTS = (  # components of spaCy's pipelines that entities do not need
    *("tagger", "morphologizer", "parser", "senter", "sentencizer", "attribute_ruler", "lemmatizer"),
    *("trainable_lemmatizer", "textcat", "textcat_multilabel", "entity_linker", "spancat"),
)
VECTORS = ("tok2vec", "transformer")  # needed only if the NER component listens to them
BATCH = 64  # texts
PIECE_CHARACTERS = 50_000  # characters; spaCy refuses 1,000,000 and its memory grows with the text
WORD = re.compile(r"[^\s,;]+")
EDGE = " \t.,;:!?\"'`’‘“”()[]{}<>*_-–—•|/"


def find_names(texts: Iterable[str], *, model: str) -> Iterator[list[Span]]:
    """Yields the names of people in each of `texts`: spans of the kind `name`, without titles and possessives.

    `model` is the name of an installed spaCy pipeline, loaded once per process. Raises MissingExtra without spaCy, and
    RecipeError for a pipeline that is not installed or does not recognize people.
    """
    nlp = _pipeline(model)
    pieces = ((piece, (index, start)) for index, text in enumerate(texts) for start, piece in _pieces(text))
    parsed = nlp.pipe(pieces, as_tuples=True, batch_size=BATCH)
    for _, docs in groupby(parsed, key=lambda item: item[1][0]):
        yield [span for doc, (_, start) in docs for span in _person_spans(doc, start)]


@lru_cache(maxsize=1)
def _pipeline(model: str) -> Any:
    try:
        from spacy.util import load_model_from_package
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "spacy":  # spaCy is installed, one of its dependencies is not
            raise
        raise missing_extra("spacy", "ner", where=SETTING) from error
    if not entry_points(group="spacy_models", name=model):
        raise RecipeError(
            f"no spaCy pipeline '{model}' is installed",
            where=SETTING,
            next=f"python -m spacy download {model if model.isidentifier() else 'en_core_web_sm'}",
        )
    nlp = load_model_from_package(model, exclude=[*UNUSED_COMPONENTS])
    for name, component in nlp.pipeline:
        if name in VECTORS and not getattr(component, "listening_components", True):
            nlp.disable_pipe(name)
    labels = {label for name in nlp.pipe_names for label in nlp.pipe_labels.get(name, ())}
    if not labels & PEOPLE:
        raise RecipeError(
            f"the spaCy pipeline '{model}' does not recognize people: it has none of {', '.join(sorted(PEOPLE))}",
            where=SETTING,
            next="Name one that does, such as en_core_web_sm",
        )
    return nlp


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Splits `text` into pieces of at most PIECE characters, at whitespace if possible, each with its start."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        blank = max(text.rfind(separator, start + 1, start + PIECE_CHARACTERS) for separator in " \n")
        end = blank if blank > 0 else start + PIECE_CHARACTERS
        yield start, text[start:end]
        start = end
    yield start, text[start:]


def _person_spans(doc: Any, start: int) -> Iterator[Span]:
    for entity in doc.ents:
        if entity.label_ in PEOPLE and (span := _trimmed_name(entity.text, start + entity.start_char)):
            yield span


def _trimmed_name(text: str, start: int) -> Span | None:
    """The name in `text`, which begins at `start`: its first line without titles, possessive ending and punctuation.

    None if fewer than two letters remain or there is a digit, which no name has.
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
