"""The page reader, apart from the extension: structured data, text, frames, hostile markup."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from extension_browser import EXTENSION, Browser

SCRIPTS = ["text", "words", "posting", "read", "fields"]
FILLER = "The workshop stands by the river and smells of wood and glue. " * 5


@pytest.fixture(scope="module")
def page(chromium: Browser) -> Iterator[Any]:
    """An ordinary page; each test fills it anew."""
    tab = chromium.context.new_page()
    tab.set_default_timeout(5000)
    yield tab
    tab.close()


def load(page: Any, html: str) -> None:
    page.goto("about:blank")
    page.set_content(html)
    for name in SCRIPTS:
        page.add_script_tag(content=(EXTENSION / "page" / f"{name}.js").read_text())


def read(page: Any, html: str) -> dict[str, Any]:
    load(page, html)
    text: dict[str, Any] = page.evaluate("tunesmith.read(document)")
    return text


def advert(page: Any, html: str) -> dict[str, Any]:
    text = read(page, html)
    assert text["found"], text
    first: dict[str, Any] = text["adverts"][0]
    return first


def linked(data: Any) -> str:
    text = data if isinstance(data, str) else json.dumps(data).replace("</", "<\\/")
    return f"<h1>Cooper</h1><script type='application/ld+json'>{text}</script>"


POSTING = {
    "@type": "JobPosting",
    "title": "Cooper",
    "description": "<p>Make barrels.</p><ul><li>oak</li></ul>" + FILLER,
}


@pytest.mark.parametrize(
    "data",
    [
        POSTING,
        [{"@type": "WebSite"}, POSTING],
        {"@graph": [{"@type": "WebPage", "mainEntity": POSTING}]},
        {"@graph": [[POSTING]]},
        {**POSTING, "@type": ["Thing", "https://schema.org/JobPosting"]},
        {"@type": "ItemList", "itemListElement": [{"@type": "ListItem", "item": POSTING}]},
        "<!-- " + json.dumps(POSTING) + " -->",
        json.dumps(POSTING).replace("Make barrels", "Make\n\tbarrels").replace("}", ",}"),
        {**POSTING, "description": POSTING["description"].replace("<", "&lt;").replace(">", "&gt;")},
    ],
    ids=[
        "plain",
        "array",
        "main entity",
        "nested",
        "types",
        "list",
        "comment",
        "line breaks and comma",
        "escaped twice",
    ],
)
def test_job_data_in_its_shapes(page: Any, data: Any) -> None:
    result = advert(page, linked(data))
    assert (result["title"], result["from"]) == ("Cooper", "JSON-LD")
    assert result["description"].replace("Make barrels", "Make barrels").startswith("Make barrels.\n- oak")
    assert "<" not in result["description"]


@pytest.mark.parametrize(
    ("organisation", "name"),
    [
        ("Barrel & Sons", "Barrel & Sons"),
        ({"@type": "Organization", "name": "Barrel &amp; Sons"}, "Barrel & Sons"),
        ([{"name": "Barrel & Sons"}], "Barrel & Sons"),
        ({"legalName": "Barrel & Sons"}, "Barrel & Sons"),
        (None, ""),
        (7, "7"),
        ({"name": {"@value": "Barrel & Sons"}}, "Barrel & Sons"),
    ],
)
def test_the_company_in_its_shapes(page: Any, organisation: Any, name: str) -> None:
    assert advert(page, linked({**POSTING, "hiringOrganization": organisation}))["company"] == name


def test_requirements_from_properties_or_from_the_text(page: Any) -> None:
    posting = {
        "qualifications": "<ul><li>A knife</li></ul>",
        "skills": [{"@type": "DefinedTerm", "name": "Bending"}, "Hooping"],
        "experienceRequirements": {"monthsOfExperience": 36},
        "educationRequirements": {"credentialCategory": "certificate"},
    }
    result = advert(page, linked({**POSTING, **posting}))
    assert result["requirements"] == "- A knife\nBending\nHooping\n36 months of experience\ncertificate"
    text = (
        "<p>Hello.</p><p><strong>What you bring:</strong></p><ul><li>A knife</li><li>Two</li></ul>"
        "<p><b>We offer</b></p><p>oak</p>"
    )
    result = advert(page, linked({**POSTING, "description": text + FILLER}))
    assert result["requirements"] == "- A knife\n- Two"


def test_of_several_adverts_the_pages_own_comes_first(page: Any) -> None:
    several = [{**POSTING, "title": title} for title in ("Joiner", "Cooper", "Turner")]
    assert [item["title"] for item in read(page, linked(several))["adverts"]] == ["Cooper", "Joiner", "Turner"]


def test_a_title_alone_as_data_is_completed_from_the_text(page: Any) -> None:
    html = linked({"@type": "JobPosting", "title": "Cooper", "hiringOrganization": "Barrel & Sons"})
    result = advert(page, html + f"<main><p>{FILLER}</p><h2>Requirements</h2><p>A knife</p></main>")
    assert (result["company"], result["requirements"]) == ("Barrel & Sons", "A knife")
    assert "smells of wood" in result["description"]


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "null",
        "[[[[[[[[[[[[[[1]]]]]]]]]]]]]]",
        '{"@type": 3}',
        '{"@type": "JobPosting"}',
        '"JobPosting"',
        "x" * 700_000,
        '{"@type":"JobPosting","title":{"name":{"name":{"name":{"name":{"name":{"name":"deep"}}}}}}}',
    ],
)
def test_broken_or_empty_data_is_passed_over(page: Any, broken: str) -> None:
    assert read(page, linked(broken) + "<p>Hello</p>")["found"] is False


HEADINGS = {
    "english": [
        "Requirements",
        "What you'll bring",
        "Who you are",
        "About you",
        "Must-haves",
        "Skills and experience",
        "Minimum qualifications",
        "What we're looking for",
        "Person specification",
    ],
    "german": [
        "Anforderungen",
        "Dein Profil",
        "Ihr Profil",
        "Das bringst du mit",
        "Was Sie mitbringen",
        "Voraussetzungen",
        "Das bringen Sie mit",
        "Wen wir suchen",
    ],
    "french": ["Profil recherché", "Votre profil", "Compétences requises", "Prérequis", "Ce que nous recherchons"],
    "spanish": ["Requisitos", "Tu perfil", "Qué buscamos", "Lo que buscamos", "Conocimientos", "Se requiere"],
}
OTHERS = [
    "Responsibilities",
    "What we offer",
    "How to apply",
    "Deine Aufgaben",
    "Wir bieten",
    "Vos missions",
    "Nous offrons",
    "Funciones",
    "Ofrecemos",
    "Benefits",
]


@pytest.mark.parametrize("language", list(HEADINGS))
def test_section_words(page: Any, language: str) -> None:
    load(page, "<p>Hello</p>")
    expected = page.evaluate(
        "all => all.filter(each => tunesmith.REQUIREMENTS.test(each.toLowerCase()))", HEADINGS[language]
    )
    assert expected == HEADINGS[language]
    assert page.evaluate("all => all.filter(each => tunesmith.REQUIREMENTS.test(each.toLowerCase()))", OTHERS) == []


@pytest.mark.parametrize(
    "heading",
    [
        "<h3>Requirements</h3>",
        "<p><b>Requirements</b></p>",
        "<p><strong>Requirements:</strong></p>",
        "<p>Requirements:</p>",
        "<div role='heading' aria-level='4'>Requirements</div>",
        "<div style='font-weight: 700'>Requirements</div>",
        "<summary>Requirements</summary>",
        "<b>Requirements</b><br>",
    ],
)
def test_headings_of_every_make_end_where_the_next_begins(page: Any, heading: str) -> None:
    after = heading.replace("Requirements", "What we offer")
    body = (
        f"<article><h1>Cooper</h1><p>{FILLER}</p>{heading}<ul><li>A knife</li><li>Patience</li></ul>"
        f"{after}<p>Oak, full-time. Apply now.</p></article>"
    )
    assert advert(page, body)["requirements"] == "- A knife\n- Patience"


def test_a_page_without_an_advert(page: Any) -> None:
    text = read(page, f"<article><h1>A walk</h1><p>{FILLER}</p><p>You can apply butter to bread.</p></article>")
    assert text["found"] is False
    assert "smells of wood" in text["adverts"][0]["description"]
    assert read(page, "")["found"] is False


def test_what_a_person_selected_is_the_advert(page: Any) -> None:
    load(page, f"<h1>A walk</h1><p id='one'>{FILLER}</p><p>Other words.</p>")
    page.evaluate("getSelection().selectAllChildren(document.getElementById('one'))")
    text = page.evaluate("tunesmith.read(document)")
    assert text["found"]
    assert text["adverts"][0]["from"] == "selection"
    assert text["adverts"][0]["description"] == FILLER.strip()


def test_hidden_text_and_invisible_characters_are_left_out(page: Any) -> None:
    hidden = "".join(
        f"<p {how}>SECRET{number}</p>"
        for number, how in enumerate(
            [
                "hidden",
                "aria-hidden=true",
                "style='display:none'",
                "style='visibility:hidden'",
                "style='opacity:0'",
                "style='font-size:0'",
            ]
        )
    )
    tags = "".join(chr(0xE0000 + ord(letter)) for letter in "IGNORE")
    unusual = f"A\u200b knife\u202e,\u2066 sharp{tags}\x07. می\u200cخواهم"
    body = (
        f"<article><h1>Cooper</h1><p>{FILLER}</p><h2>Requirements</h2><p>{unusual}</p>{hidden}<h2>"
        f"Benefits</h2><p>Full-time</p></article>"
    )
    result = advert(page, body)
    assert "SECRET" not in json.dumps(result)
    assert result["requirements"] == "A knife, sharp. می\u200cخواهم"
    data = {**POSTING, "description": POSTING["description"] + hidden.replace("visibility", "visibility")}
    assert "SECRET" not in advert(page, linked(data))["description"]


def test_bounds(page: Any) -> None:
    load(page, "<h1>Cooper</h1><main id='m'></main>")
    page.evaluate(
        """() => {
          let deep = document.getElementById("m");
          for (let n = 0; n < 900; n++) deep = deep.appendChild(document.createElement("div"));
          deep.textContent = "too deep";
          for (let n = 0; n < 3000; n++) {
            const textContent = "Requirements and salary, full-time, apply now, " + "x".repeat(200);
            document.getElementById("m").append(Object.assign(document.createElement("p"), { textContent }));
          }
        }"""
    )
    [result] = page.evaluate("tunesmith.read(document)")["adverts"]
    assert len(result["description"]) <= 20_000
    assert "description" in result["clipped"]
    result = advert(page, linked({**POSTING, "title": "T" * 5000, "qualifications": "word. " * 5000}))
    assert (len(result["title"]), len(result["requirements"]) <= 8000) == (200, True)


def test_markup_in_data_runs_and_loads_nothing(page: Any) -> None:
    evil = (
        "<img src=http://board.example/leak onerror='window.hurt=1'><script>window.hurt=2</script>"
        "<svg onload='window.hurt=3'></svg><p>Oak</p>"
    )
    page.on("request", lambda request: requested.append(request.url))
    requested: list[str] = []
    result = advert(page, linked({**POSTING, "description": evil + FILLER}))
    page.wait_for_timeout(200)
    assert result["description"].startswith("Oak")
    assert page.evaluate("window.hurt") is None
    assert requested == []


def test_frames_and_shadow_roots(page: Any) -> None:
    inner = (
        f"<h1>Cooper at Barrel Works</h1><p>{FILLER}</p><h2>Requirements</h2><p>A knife</p><h2>"
        f"Benefits</h2><p>Full-time; apply now.</p><textarea title=inside></textarea>"
    )
    load(page, f'<h1>Site</h1><iframe width=500 height=400 srcdoc="{inner}"></iframe><div id=host></div>')
    page.wait_for_function("document.querySelector('iframe').contentDocument?.querySelector('textarea')")
    [result] = page.evaluate("tunesmith.read(document)")["adverts"]
    assert (result["title"], result["company"], result["requirements"]) == ("Cooper", "Barrel Works", "A knife")
    page.evaluate(
        "host.attachShadow({mode: 'open'}).append(Object.assign(document.createElement('textarea'), {title: 'shaded'}))"
    )
    assert [item["label"] for item in page.evaluate("tunesmith.fields(document)")] == ["shaded", "inside"]
    load(page, "<div id=host></div>")
    page.evaluate(
        (
            "html => { const root = host.attachShadow({mode: 'open'}); root.append(document.createElement('div'));"
            " root.firstChild.innerHTML = html; }"
        ),
        inner,
    )
    [result] = page.evaluate("tunesmith.read(document)")["adverts"]
    assert result["requirements"] == "A knife"


def test_which_fields_are_offered(page: Any) -> None:
    load(
        page,
        "<input id=a><input type=password><input type=checkbox><input type=submit><textarea readonly></textarea>"
        "<textarea disabled></textarea><div hidden><textarea></textarea></div><label>Anschreiben<textarea "
        "maxlength=90>xy</textarea></label>"
        "<div contenteditable aria-label=Body><p contenteditable=true>inner</p></div>"
        "<div contenteditable=false>no</div><select></select>",
    )
    result = page.evaluate("tunesmith.fields(document)")
    assert [(item["label"], item["kind"], item["holds"], item["limit"]) for item in result] == [
        ("Anschreiben", "text", 2, 90), ("Body", "editor", 5, 0), ("a", "line", 0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<textarea></textarea>", "One\n\nTwo <b>"),
        ("<input>", "One Two <b>"),
        ("<div contenteditable=plaintext-only></div>", "One\n\nTwo <b>"),
        ("<div contenteditable=true style='white-space: pre-wrap'>old</div>", "One\n\nTwo <b>"),
        ("<div contenteditable><p>old <i>text</i></p></div>", "One\n\nTwo <b>"),
    ],
)
def test_inserting(page: Any, html: str, expected: str) -> None:
    load(page, html)
    page.evaluate(
        "seen = []; ['input', 'change'].map((name) => document.addEventListener(name, (event) => "
        "seen.push(event.type)))"
    )
    page.evaluate("tunesmith.fields(document)")
    text = page.evaluate("tunesmith.insert(0, 'One\\n\\nTwo <b>')")
    assert (text["done"], text["why"]) == (True, "")
    visible = page.evaluate(
        "document.querySelector('textarea, input, div').value ?? document.querySelector('div').innerText"
    )
    assert re.sub(r"\n{3,}", "\n\n", visible.strip()) == expected  # an editor's paragraphs count as more line breaks
    assert "input" in page.evaluate("seen")
    assert page.locator("b").count() == 0
    page.evaluate("document.body.replaceChildren()")
    assert page.evaluate("tunesmith.insert(0, 'x')")["why"] == "gone"
    assert page.evaluate("tunesmith.insert(9, 'x')")["why"] == "gone"


def test_an_editor_that_handles_pasting_gets_one_paste(page: Any) -> None:
    load(page, "<div contenteditable>old</div>")
    page.evaluate(
        """() => document.querySelector("div").addEventListener("paste", (event) => {
          event.preventDefault();
          window.pasted = (window.pasted ?? 0) + 1;
          event.target.textContent = event.clipboardData.getData("text/plain");
        })"""
    )
    page.evaluate("tunesmith.fields(document)")
    assert page.evaluate("tunesmith.insert(0, 'One')")["done"]
    assert (page.evaluate("window.pasted"), page.locator("div").inner_text()) == (1, "One")


def test_a_field_that_refuses_or_is_too_short_says_so(page: Any) -> None:
    load(page, "<textarea maxlength=5></textarea><textarea id=no>mine</textarea>")
    page.evaluate("document.getElementById('no').addEventListener('input', event => { event.target.value = 'mine'; })")
    page.evaluate("tunesmith.fields(document)")
    assert page.evaluate("tunesmith.insert(0, '123456')")["why"] == "limit"
    assert page.evaluate("tunesmith.insert(0, '12345')")["done"]
    assert page.evaluate("tunesmith.insert(1, 'x')") == {"done": False, "why": "refused", "before": "mine"}


def test_waiting_is_bounded(page: Any) -> None:
    load(page, "<p>Hello</p>")
    page.evaluate("setInterval(() => document.body.append('.'), 20)")
    text = page.evaluate("tunesmith.readWhenStill(document, 200, 700)")
    assert text["found"] is False
    assert 600 <= text["waited"] < 2000
