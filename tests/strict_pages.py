"""Pages read strictly, and texts that must not become markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from tunesmith.config.recipe import Recipe
from tunesmith.data.prepare import distribution

TOPIC = "<img onerror>"
MONEY = 'costs $5 & $6 "a\'b"'
EVIL = f"</pre></code></style><script>alert(1)</script> {MONEY} <b onclick=x> {{{{ 7*7 }}}} --> http://evil.example/x"
LINE = "two\u2028lines"  # JSON leaves this line separator as it is
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every tag must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.styles: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.styles if self.open and self.open[-1] == "style" else self.texts).append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def toy_recipe() -> Recipe:
    return Recipe.model_validate(
        {
            "name": "toy",
            "about": f"{EVIL}.",
            "base": {"model": f"{EVIL}/base"},
            "data": {
                "source": "rows.jsonl",
                "format": {"columns": {"group": "topic"}},
                "checks": ["empty", "too_long"],
            },
            "evaluate": {"metrics": ["numbered_steps", "loss", "length", "expected"], "primary": "numbered_steps"},
        }
    )


def finding(**changes: Any) -> dict[str, Any]:
    """A finding as findings.jsonl holds it."""
    return {
        "check": "too_long",
        "row": "r",
        "file": EVIL,
        "line": 3,
        "unit": "line",
        "message": EVIL,
        "proposal": "drop",
        "turn": 1,
        "start": 5,
        "end": 9,
        "excerpt": f"…before ⟦{EVIL}⟧ after",
        **changes,
    }


def told(*findings: dict[str, Any]) -> dict[str, Any]:
    """The audit of a check with these findings."""
    proposals = {each["proposal"]: 0 for each in findings}
    for each in findings:
        proposals[each["proposal"]] += 1
    rows = {each["row"] for each in findings if each["row"]}
    return {"found": len(findings), "rows": len(rows), "proposals": proposals, "examples": list(findings[:40])}


def account(**changes: Any) -> dict[str, Any]:
    """The account of a split table, as audit.json holds it; `changes` of None leave a key out."""
    lengths = {"prompt_words": [3, 4, 9], "answer_words": [5, 5, 5], "tokens": [30, 41, 1057]}
    lengths |= {"prompt_characters": [9, 12, 40], "answer_characters": [20, 20, 25]}
    plain = {
        "read": 1234,
        "dropped": {"too_long": 1},
        "quarantined": {},
        "not_drawn": 0,
        "repaired": {"rows": 0, "pseudonyms": 0, "kinds": {}, "examples": []},
        "sources": [
            {"file": "rows.jsonl", "bytes": 10, "encoding": "", "notes": [], "rows": 1000},
            {
                "file": f"more/{TOPIC}.csv",
                "bytes": 10,
                "encoding": "cp1252",
                "notes": [f"because {TOPIC}"],
                "rows": 234,
            },
        ],
        "parts": {"train": 1000, "valid": 9, "test": 4, "unseen": 2},
        "groups": {"train": [TOPIC, MONEY], "valid": [], "test": [TOPIC], "unseen": [f"unseen {TOPIC}"]},
        "leaks": {"held": 15, "prompts": 0, "answers": 0, "pairs": 0, "near_prompts": 0, "threshold": 0.8},
        "checks": {"empty": told(), "too_long": told(finding())},
        "profile": {
            "rows": 1016,
            "lengths": {name: distribution(values) for name, values in lengths.items()},
            "groups": {"": 1, TOPIC: 2, MONEY: 1, "返品 <b>": 3},
            "exchanges": {"1": 1015, "2": 1},
            "fields": {
                "prompt": {"filled": 3, "blank": 0, "missing": 0},
                TOPIC: {"filled": 1, "blank": 1, "missing": 1},
            },
            "languages": {"en": 1000, "Greek": 16},
            "distinct": {"prompts": 1010, "answers": 1009, "pairs": 1016},
            "read": {"ngrams": 1016, "languages": 1016},
            "prompt_ngrams": [("how do <i>", 4), (EVIL, 2)],
            "answer_ngrams": [("tap & go", 3)],
        },
        **changes,
    }
    return {name: value for name, value in plain.items() if value is not None}


def check_foreign_text(page: str) -> None:
    """Nothing from a row, a reply or a recipe is markup."""
    read = Page(page)
    names = {name for name, _ in read.tags}
    assert not names & {"script", "img", "iframe", "object", "embed", "link", "form", "base", "b onclick=x"}
    assert all(attributes == {} for attributes in read.named("b"))  # ours; the foreign <b onclick> would have one
    assert not [key for _, attributes in read.tags for key in attributes if key.startswith("on")]
    assert read.text.count(EVIL) >= 4  # whole, character by character
    assert TOPIC in read.text
    assert "<script" not in page and "<img" not in page


def check_nothing_is_fetched(page: str) -> None:
    read = Page(page)
    places = {"src", "href", "xlink:href", "action", "poster", "srcset", "data", "background", "formaction", "cite"}
    links = {value for _, attributes in read.tags for key, value in attributes.items() if key in places}
    assert all(re.fullmatch(r"#[\w-]+|audit\.html", str(link)) for link in links)
    styles = [*read.styles, *(str(a.get("style") or "") for _, a in read.tags)]
    assert len(read.styles) > 1
    assert not [style for style in styles if "@import" in style or "http" in style]
    urls = [url for _, a in read.tags for value in a.values() for url in re.findall(r"url\((.*?)\)", value or "")]
    assert urls and all(re.fullmatch(r"#\w+", url) for url in urls)
    policies = [meta["content"] for meta in read.named("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def check_plots_and_ids(page: str) -> None:
    """Plots say what they show, ids are unique, links within the page lead somewhere."""
    read = Page(page)
    plotted = read.named("svg")
    assert len(plotted) >= 2
    assert all(svg["role"] == "img" and len(svg["aria-label"] or "") > 10 for svg in plotted)
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert sorted(ids, key=str) == sorted(set(ids), key=str)
    wanted = {attributes["aria-labelledby"] for attributes in read.named("section")}
    assert wanted and wanted <= set(ids)
    used = {(attributes["xlink:href"] or "")[1:] for attributes in read.named("use")}
    assert used and used <= set(ids)
    inside = {(a["href"] or "")[1:] for a in read.named("a") if (a.get("href") or "").startswith("#")}
    assert inside <= set(ids)


def check_read_by_ear_and_keyboard(read: Page) -> list[str]:
    """What scrolls can be reached and has a name, tables and sections are labeled; the headings' ids in order."""
    scrolled = [each for each in read.named("div") if "scroll" in str(each.get("class"))]
    assert scrolled and all(each["tabindex"] == "0" and each["role"] == "region" for each in scrolled)
    assert len({each["aria-label"] for each in scrolled}) == len(scrolled)
    assert all(each.get("scope") in ("col", "row") for each in read.named("th"))
    ids = [heading["id"] or "" for heading in read.named("h2")]
    assert [section["aria-labelledby"] for section in read.named("section")] == ids == [*dict.fromkeys(ids)]
    return ids
