"""The extension's own modules, called in its own page: profiles, mapping, letters, addresses, the stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from extension_browser import PROFILE, Browser

CV = """Curriculum Vitae
Lior Fernleaf
lior@example.com

Profile
Builds bridges and likes culverts.

Work Experience:
Design Engineer at Lundreth Bridges, 2019 - present
- bridge deck of 61 metres
- talks to masons
Site Engineer, Mistlebrook Construction
2016 - 2019
• designed 11 culverts

EDUCATION
Master's degree in Structural Engineering, 2016
Skills: AutoCAD, drainage design
Languages
Dutch
"""
RESUME = {
    "basics": {"name": "Lior Fernleaf", "label": "Engineer", "summary": "Builds bridges.", "email": "l@example.com"},
    "work": [
        {
            "name": "Lundreth Bridges",
            "position": "Design Engineer",
            "startDate": "2019-03-01",
            "highlights": ["bridge deck of 61 metres"],
        },
        {
            "company": "Mistlebrook Construction",
            "position": "Site Engineer",
            "startDate": "2016",
            "endDate": "2019",
            "summary": "designed 11 culverts",
        },
        {"name": "Later", "position": "Guest", "endDate": "2999-01-01"},
        7,
    ],
    "education": [
        {"institution": "Tarnleigh College", "studyType": "Master", "area": "Structural Engineering", "endDate": "2016"}
    ],
    "certificates": [{"name": "Site Safety", "issuer": "Guild", "date": "2017-05-01"}],
    "skills": [{"name": "Drawing", "keywords": ["AutoCAD", "pencils"]}, {"name": "Drainage"}],
    "languages": [{"language": "Dutch", "fluency": "fair"}],
    "volunteer": [{"organization": "Ferry", "position": "Captain", "summary": "crossed"}],
}


@pytest.fixture(scope="module")
def call(chromium: Browser) -> Iterator[Any]:
    """call(module, code, *given): what the code returns, with the module as `m` and the values as `given`."""
    page = chromium.own("options.html")

    def calling(module: str, code: str, *value: Any) -> Any:
        return page.evaluate(f"given => import('./lib/{module}.js').then((m) => {{ {code} }})", list(value))

    yield calling
    page.close()


def test_pasted_text(call: Any) -> None:
    result = call("profile", "return m.imported(given[0])", CV)
    profile = result["profile"]
    assert profile["name"] == "Lior Fernleaf"
    assert profile["summary"] == "Builds bridges and likes culverts."
    assert (
        profile["current"]
        == "Design Engineer at Lundreth Bridges, 2019 - present; bridge deck of 61 metres; talks to masons"
    )
    assert profile["past"] == "Site Engineer, Mistlebrook Construction, 2016 - 2019; designed 11 culverts"
    assert profile["skills"] == "AutoCAD, drainage design"
    assert profile["qualifications"] == "Master's degree in Structural Engineering, 2016"
    assert profile["other"] == "Curriculum Vitae\nlior@example.com\nDutch"  # nothing is lost
    assert "Other" in result["notes"][0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("Mila Sorrel\nBerufserfahrung\nGärtnerin, Grünquell, seit 2020\nGehilfin, Moosheim, "
"2016-2020\nAusbildung\nGärtnerlehre\nKenntnisse\nHecken"),
         ("Gärtnerin, Grünquell, seit 2020", "Gehilfin, Moosheim, 2016-2020", "Gärtnerlehre", "Hecken")),
        (("Mila Sorrel\nExpériences professionnelles\nBoulangère au Four du Coin depuis "
"2020\nFormation\nCAP\nCompétences\nLevain"),
         ("Boulangère au Four du Coin depuis 2020", "", "CAP", "Levain")),
        ("Mila Sorrel\nExperiencia laboral\nRelojera en Badajo, 2015-2019\nFormación\nMecánica\nHabilidades\nPaciencia",
         ("", "Relojera en Badajo, 2015-2019", "Mecánica", "Paciencia")),
    ],
)  # fmt: skip
def test_pasted_text_in_other_languages(call: Any, words: str, expected: tuple[str, ...]) -> None:
    profile = call("profile", "return m.imported(given[0]).profile", words)
    assert tuple(profile[name] for name in ("current", "past", "qualifications", "skills")) == expected


def test_text_without_headings_and_nothing(call: Any) -> None:
    result = call("profile", "return m.imported(given[0])", "I bake bread at night.\nFor nine years.")
    assert result["profile"]["other"] == "I bake bread at night.\nFor nine years."
    assert "No section headings" in result["notes"][0]
    assert "is empty" in call("profile", "return m.imported(given[0]).notes[0]", " \n ")
    assert "not valid JSON" in call("profile", "return m.imported(given[0]).notes[0]", '{"basics": ')


def test_a_json_resume(call: Any) -> None:
    profile = call("profile", "return m.imported(given[0]).profile", json.dumps(RESUME))
    assert profile == {
        "name": "Lior Fernleaf",
        "summary": "Engineer. Builds bridges.",
        "current": (
            "Design Engineer at Lundreth Bridges, since 2019-03-01: bridge deck of 61 metres\nGuest "
            "at Later, 2999-01-01"
        ),
        "past": "Site Engineer at Mistlebrook Construction, 2016 to 2019: designed 11 culverts",
        "skills": "Drawing: AutoCAD, pencils\nDrainage",
        "qualifications": "Master in Structural Engineering, Tarnleigh College, 2016\nSite Safety, Guild, 2017-05-01",
        "other": "Language: Dutch, fair\nCaptain at Ferry: crossed",
    }


@pytest.mark.parametrize(
    "resume",
    [
        {},
        {"basics": 3, "work": {}, "skills": ["a", None]},
        {"basics": {"name": ["x"]}},
        {"meta": {"tunesmith": {"name": 3}}},
    ],
)
def test_odd_resumes_give_an_empty_profile(call: Any, resume: Any) -> None:
    assert set(call("profile", "return m.imported(given[0]).profile", json.dumps(resume)).values()) == {""}


def test_an_exported_profile_comes_back_as_it_was(call: Any) -> None:
    exported = call("profile", "return m.exported(given[0])", PROFILE)
    assert exported["basics"]["name"] == "Lior Fernleaf"
    assert [item["name"] for item in exported["skills"]] == ["progress reports", "AutoCAD", "drainage design"]
    assert call("profile", "return m.imported(given[0]).profile", json.dumps(exported)) == PROFILE


def test_what_is_too_long_is_cut_and_said(call: Any) -> None:
    result = call("profile", "return m.imported(given[0])", f"Skills\n{'x' * 5000}\nEducation\nCAP")
    assert len(result["profile"]["skills"]) == 4000
    assert "Too long and cut: skills." in result["notes"]


def test_sources_by_the_fields_names(call: Any) -> None:
    names = ["Job Title", "Preferred Qualifications", "Hiring Company", "Applicant Name", "Past Working Experience",
             "Current Working Experience", "Skillsets", "Qualifications", "Shoe size"]  # fmt: skip
    assert call("mapping", "return given[0].map(m.guess)", names) == [
        "advert.title", "advert.requirements", "advert.company", "profile.name", "profile.past",
        "profile.current", "profile.skills", "profile.qualifications", "typed",
    ]  # fmt: skip
    recipe = {"name": "r", "fields": [{"name": "Skillsets"}, {"name": "Qualifications"}]}
    token = {"r": {"Skillsets": "profile.other", "Qualifications": "constructor"}}
    assert call("mapping", "return m.sources(...given)", recipe, token) == {
        "Skillsets": "profile.other",
        "Qualifications": "profile.qualifications",
    }


def test_values_fit_their_fields(call: Any) -> None:
    advert = {"requirements": "", "description": "- oak\n- ash.\n\n* elm"}
    code = "return m.value({kind: given[0], longest: given[1]}, 'advert.requirements', given[2], {})"
    assert call("mapping", code, "text", 99, advert) == {
        "text": "oak; ash. elm",
        "left": 0,
    }  # the description stands in
    assert call("mapping", code, "lines", 99, advert)["text"] == "- oak\n- ash.\n\n* elm"
    cut = call("mapping", code, "lines", 24, {"requirements": "One sentence. Two. Three is longer."})
    assert cut == {"text": "One sentence. Two.", "left": 17}
    emoji = call("mapping", "return m.fitted(given[0], 3)", "🌉🌉🌉🌉")
    assert (emoji["text"], emoji["left"]) == ("🌉🌉🌉", 1)
    invalid = "return m.wrong({fields: [{name: 'a', required: true, longest: 3}, {name: 'b', longest: 3}]}, given[0])"
    assert call("mapping", invalid, {"a": " ", "b": "🌉🌉🌉"}) == [{"name": "a", "why": "is needed"}]
    assert call("mapping", invalid, {"a": "abcd", "b": ""}) == [{"name": "a", "why": "is 1 character too long"}]


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("one two three", "one two three!", [4, 7]),
        ("one two three", "zero one two three", [9, 12]),
        ("one two three", "one twoo three", [4, 7]),  # directly behind it
        ("one two three", "one to three", None),
        ("one two three", "", None),
        ("one two three", "one two", [4, 7]),
        ("one two three", "two three", [0, 3]),
    ],
)
def test_marks_follow_edits(call: Any, before: str, after: str, found: list[int] | None) -> None:
    claims = call("letter", "return m.shifted([{start: 4, end: 7}], ...given)", before, after)
    assert claims == ([{"start": found[0], "end": found[1]}] if found else [])


@pytest.mark.parametrize(
    ("letter", "claim", "left"),
    [
        ("One. I hold a PhD. Three.", "a PhD", "One. Three."),
        ("I hold a PhD. Three.", "a PhD", "Three."),
        ("One. I hold a PhD.", "a PhD", "One."),
        ("One.\n\nI hold a PhD.\n\nThree.", "a PhD", "One.\n\nThree."),
        ("One.\n- I hold a PhD\n- Three", "a PhD", "One.\n- Three"),
        ("One. Dr. Oak of St. Elm, e.g. me, holds a PhD. Three.", "a PhD", "One. Three."),
        ("One. Was it 2.5 years? I hold 3.5 PhDs! Four.", "PhDs", "One. Was it 2.5 years? Four."),
        ("I hold a PhD", "a PhD", ""),
        ("One. Two holds. A PhD too. Four.", "holds. A PhD", "One. Four."),
        ("Dear team,\n\nOne. I hold a PhD.\nKind regards", "a PhD", "Dear team,\n\nOne.\nKind regards"),
        ("🌉 One. I 🌉 hold a PhD. Three.", "a PhD", "🌉 One. Three."),
    ],
)
def test_a_sentence_is_taken_out_whole(call: Any, letter: str, claim: str, left: str) -> None:
    code = "const [a, b] = m.sentence(given[0], given[1], given[2]); return given[0].slice(0, a) + given[0].slice(b)"
    start = len(letter[: letter.index(claim)].encode("utf-16-le")) // 2
    assert call("letter", code, letter, start, start + len(claim)) == left


def test_offsets_count_characters_as_the_server_does(call: Any) -> None:
    claim = {"start": 4, "end": 6, "verdict": "unsupported", "why": "w", "kind": "k", "field": ""}
    assert call("letter", "return m.marked(...given).said", "a🌉b🌉cd", claim) == "cd"
    assert call("letter", "return m.marked(...given)", "a🌉b", claim) is None


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:8765", "127.0.0.1:8765", " http://localhost:99/ ", "http://127.0.0.1", "http://2130706433:8765"],
)
def test_addresses_of_this_computer(call: Any, address: str) -> None:
    assert call("server", "return m.loopback(given[0])", address).startswith(("http://127.0.0.1", "http://localhost"))


@pytest.mark.parametrize(
    "address",
    [
        "https://127.0.0.1:8765",
        "http://192.168.0.2:8765",
        "http://127.0.0.1.evil.example",
        "http://evil.example#127.0.0.1",
        "http://127.0.0.1@evil.example",
        "http://u:p@127.0.0.1",
        "http://127.0.0.1/path",
        "http://127.0.0.1/?q",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "",
        "http://[::1]:8765",
        "http://0.0.0.0:8765",
        "http://localhost.evil.example",
    ],
)
def test_other_addresses_are_refused(call: Any, address: str) -> None:
    code = "try { return m.loopback(given[0]); } catch (error) { return [error.kind, error.message]; }"
    kind, message = call("server", code, address)
    assert kind == "refused"
    assert "http://127.0.0.1" in message


STREAM = (
    'event: text\ndata: {"text":"Grüße 🌉"}\n\n: a comment\n\nevent: unknown\ndata: {}\n\nevent: '
    'text\ndata: {"text":\ndata: "zwei"}\n\nevent: done\ndata: {"text":"Grüße 🌉zwei","claims":[],"stopped":true}\n\n'
)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_stream_in_pieces_of_any_size(call: Any, size: int, end: str) -> None:
    code = """
      const bytes = new TextEncoder().encode(given[0]);
      const body = new ReadableStream({ start(to) {
        for (let n = 0; n < bytes.length; n += given[1]) to.enqueue(bytes.slice(n, n + given[1]));
        to.close();
      } });
      const found = [];
      const all = async () => { for await (const event of m.events(body)) found.push([event.name, event.text]); };
      return all().then(() => found);
    """
    assert call("stream", code, STREAM.replace("\n", end), size) == [
        ["text", "Grüße 🌉"],
        ["text", "zwei"],
        ["done", "Grüße 🌉zwei"],
    ]


def test_malformed_events_are_not_believed(call: Any) -> None:
    good = {"start": 0, "end": 2, "verdict": "unsupported", "why": "w"}
    rows = [
        {**good, "start": -1},
        {**good, "end": 0},
        {**good, "verdict": "<b>"},
        {**good, "start": 1.5},
        {**good, "end": 10**9},
        {},
        None,
        good,
    ]
    accepted = call("stream", "return given[0].map((row) => m.checked('claim', row ?? {}))", rows)
    assert [item is not None for item in accepted] == [False] * 7 + [True]
    assert call("stream", "return m.checked('text', {text: 7}).text") == ""
    assert call("stream", "return m.checked('done', {claims: 7, text: null}).claims") == []
