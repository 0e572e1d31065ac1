"""Names by NER: trimmed as the row's own are, giving way to certain kinds, from an installed pipeline alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from handmade import defects_of, row, spans, talk
from tunesmith.commands.read_rows import repair_settings
from tunesmith.config.recipe import Data
from tunesmith.data import privacy
from tunesmith.data.privacy import PseudonymMap, find_names, find_personal, restore
from tunesmith.data.privacy_patterns import Span
from tunesmith.data.repair_rows import RowRepair
from tunesmith.errors import MissingExtra, RecipeError

TERN = "en_tern"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Each test loads its own pipeline."""
    privacy._pipeline.cache_clear()
    yield
    privacy._pipeline.cache_clear()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, label: str = "PERSON", more: str = "") -> None:
    """A spaCy pipeline as `spacy package` lays it out, which knows six words as people and one as a place."""
    spacy = pytest.importorskip("spacy")
    nlp = spacy.blank("en", meta={"name": "tern", "version": "0.0.0"})
    nlp.add_pipe("sentencizer")
    people = ["Mira Quill", "Dr. Ansel Tern", "Mira Quill's", "Ansel", "x", "R2 Tern"]
    patterns = [{"label": label, "pattern": each} for each in people]
    nlp.add_pipe("entity_ruler").add_patterns([*patterns, {"label": "GPE", "pattern": "Turku"}])
    package = folder / TERN
    package.mkdir()
    nlp.to_disk(package / f"{TERN}-0.0.0")
    code = "from spacy.util import load_model_from_init_py\n\n\ndef load(**more):\n"
    (package / "__init__.py").write_text(f"{more}{code}    return load_model_from_init_py(__file__, **more)\n")
    (package / "meta.json").write_text(json.dumps(nlp.meta))
    told = folder / f"{TERN}-0.0.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {TERN}\nVersion: 0.0.0\n")
    (told / "entry_points.txt").write_text(f"[spacy_models]\n{TERN} = {TERN}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, TERN, raising=False)


@pytest.fixture
def tern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    install(tmp_path, monkeypatch)
    return TERN


def found(text: str) -> list[str]:
    [[*names]] = find_names([text], model=TERN)
    assert all(text[span.start : span.end] == span.text and span.kind == "name" for span in names)
    return [span.text for span in names]


# --- without spaCy -------------------------------------------------------------------------------------------


def test_without_spacy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("spacy", "spacy.util"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(MissingExtra) as caught:
        defects_of("personal", [row(1, "Is Mira here?")], ner="en_core_web_sm")
    assert caught.value.what == "'ner' needs the package 'spacy', which is not installed"
    assert (caught.value.where, caught.value.next) == (
        "data.checks, personal.ner",
        "Install it: pip install 'tunesmith[ner]'",
    )
    assert defects_of("personal", [row(1, "Is Mira here?")]) == []
    assert (
        defects_of("personal", [row(1, "Is Mira here?")], ner="en_core_web_sm", kinds=["email"]) == []
    )  # no names asked for


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Mira Quill", "Mira Quill"),
        ("Dr. Mira Quill", "Mira Quill"),
        ("Prof. Dr. Mira Quill, PhD", "Mira Quill"),
        ("Mira Quill's", "Mira Quill"),
        ("Mira Quill’s", "Mira Quill"),
        ("the Quills'", "the Quills"),
        (" “Mira”,", "Mira"),
        ("Mira Quill\n12 Elm Street", "Mira Quill"),
        ("Mary-Ann O'Tern", "Mary-Ann O'Tern"),
        ("\n*Mira*", "Mira"),
        ("Dr.", ""),
        ("X", ""),
        ("R2 Tern", ""),
        (" \n", ""),
    ],
)
def test_trimmed(text: str, name: str) -> None:
    span = privacy._trimmed_name(text, 7)
    assert (span.text if span else "") == name
    assert span is None or text[span.start - 7 : span.end - 7] == name


def test_names_by_other_means_give_way_to_certain_kinds() -> None:
    text = "Mira Quill mira@example.org 212-555-0134 Tern"
    people = [Span(0, 15, "name", text[:15]), Span(41, 45, "name", "Tern")]  # the first reaches into the address
    told = [(span.kind, span.text) for span in find_personal(text, names=["Quill"], people=people)]
    assert told == [("name", "Quill"), ("email", "mira@example.org"), ("phone", "212-555-0134"), ("name", "Tern")]
    whole = find_personal(text, names=["Quill"], people=[Span(0, 10, "name", "Mira Quill")])
    assert [span.text for span in whole if span.kind == "name"] == ["Mira Quill"]  # the longer of two names


def test_texts_are_cut_at_blanks_and_nothing_is_lost() -> None:
    for text in (
        "",
        "a b",
        "ab " * 40_000,
        "a" * (2 * privacy.PIECE_CHARACTERS + 1),
        "\n" + "a" * privacy.PIECE_CHARACTERS,
    ):
        pieces = list(privacy._pieces(text))
        assert "".join(piece for _, piece in pieces) == text
        assert all(text[start:].startswith(piece) and len(piece) <= privacy.PIECE_CHARACTERS for start, piece in pieces)
    assert all(
        piece.strip().startswith("ab") and piece.rstrip().endswith("ab") for _, piece in privacy._pieces("ab " * 40_000)
    )


def test_a_recipe_hands_the_pipeline_to_the_repairer(tmp_path: Path) -> None:
    checks = [{"personal": {"ner": TERN, "names": ["Applicant"]}}]
    data = Data.model_validate({"source": "rows.csv", "pseudonyms": "book.json", "checks": checks})
    _, mend = repair_settings(data, tmp_path)
    assert (mend.ner, list(mend.names)) == (TERN, ["Applicant"])


# --- with spaCy ----------------------------------------------------------------------------------------------


def test_people_alone_are_found_in_the_texts_order(tern: str) -> None:
    assert found("Dr. Ansel Tern met Mira Quill's aunt in Turku; x and R2 Tern did not.") == [
        "Ansel Tern",
        "Mira Quill",
    ]
    texts = [f"{number} Ansel" if number % 3 else "" for number in range(200)]
    assert [len(names) for names in find_names(texts, model=tern)] == [bool(number % 3) for number in range(200)]
    assert list(find_names([], model=tern)) == []


def test_names_deep_in_a_long_text_keep_their_place(tern: str) -> None:
    text = "so on " * 20_000 + "Mira Quill " + "so on " * 10_000 + "Ansel"
    assert found(text) == ["Mira Quill", "Ansel"]


def test_one_pipeline_a_process_with_needed_components_alone(tern: str) -> None:
    assert found("Ansel") == ["Ansel"]
    nlp = privacy._pipeline(tern)
    assert nlp.pipe_names == ["entity_ruler"]
    found("Mira Quill")
    assert privacy._pipeline(tern) is nlp


def test_every_turn_is_looked_through_beside_the_rows_own_names(tern: str) -> None:
    rows = [
        row(1, "Is Ansel in?", "No, Mira Quill is; Olga left.", system="You help Ansel.", Applicant="Olga"),
        row(2, "And now?", "Nobody."),
        talk(3, "Ansel?", "Yes.", "Sure?", "Ask Mira Quill."),
    ]
    findings = defects_of("personal", rows, names=["Applicant"], ner=tern)
    assert sorted(spans(findings, rows)) == sorted(
        [("r1", "Ansel"), ("r1", "Ansel"), ("r1", "Mira Quill"), ("r1", "Olga"), ("r3", "Ansel"), ("r3", "Mira Quill")]
    )
    assert {finding.excerpt for finding in findings} == {""}


def test_pseudonyms_for_names_are_the_same_in_every_row(tern: str) -> None:
    book = PseudonymMap()
    mend = RowRepair(book=book, ner=tern)
    values = {"prompt": "Is Mira Quill in?", "answer": "No, but Ansel is. Mira Quill's at sea."}
    done = [mend.row(values, []).values, mend.row({"prompt": "Ansel, Mira Quill"}, []).values]
    assert done == [
        {"prompt": "Is Person1 Person2 in?", "answer": "No, but Person3 is. Person1 Person2's at sea."},
        {"prompt": "Person3, Person1 Person2"},
    ]
    assert {name: restore(text, book) for name, text in done[0].items()} == values


def test_a_pipeline_that_is_not_installed_is_named_with_the_command(tmp_path: Path) -> None:
    pytest.importorskip("spacy")
    with pytest.raises(RecipeError) as caught:
        defects_of("personal", [row(1, "Is Mira here?")], ner="en_core_nowhere")
    assert caught.value.next == "python -m spacy download en_core_nowhere"
    assert caught.value.where == "data.checks, personal.ner"


def test_no_folder_and_no_other_package_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, more="raise AssertionError('code was run')\n")
    monkeypatch.chdir(tmp_path)
    for model in (str(tmp_path / TERN / f"{TERN}-0.0.0"), f"{TERN}/{TERN}-0.0.0", f"./{TERN}", "pytest", "antigravity"):
        with pytest.raises(RecipeError, match="no spaCy pipeline"):
            list(find_names(["Mira"], model=model))


def test_a_pipeline_without_people_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, label="ORG")
    with pytest.raises(RecipeError, match="names no people"):
        list(find_names(["Mira"], model=TERN))
