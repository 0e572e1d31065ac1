"""Personal data is found by shape and checksum, what only looks like it is left, and pseudonyms can be undone.

Every value here is from a range that its owner reserved for examples or voided.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from re import _constants as codes
from re import _parser as parser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import privacy_patterns as patterns
from tunesmith.data.privacy import (
    KINDS,
    PseudonymMap,
    find_personal,
    find_secrets,
    pseudonymize,
    restore,
    without_overlaps,
)
from tunesmith.data.privacy_patterns import Span, entropy, luhn
from tunesmith.errors import DataError


def found(text: str, **options: Any) -> list[tuple[str, str]]:
    spans = find_personal(text, **options)
    assert all(text[span.start : span.end] == span.text for span in spans)
    return [(span.kind, span.text) for span in spans]


# --- each kind: taken and left ---------------------------------------------------------------------------------

TAKEN = {
    "email": {
        "Write to mira.quill@example.org.": "mira.quill@example.org",
        "<mira+shop@mail.example.co.uk>": "mira+shop@mail.example.co.uk",
        "mailto:MIRA_Q@EXAMPLE.COM?subject=x": "MIRA_Q@EXAMPLE.COM",
        "münze@bücher.example": "münze@bücher.example",
        "'mira@example.net'": "mira@example.net",
    },
    "phone": {
        "It is 212-555-0134.": "212-555-0134",
        "(212) 555-0134": "(212) 555-0134",
        "(reach us: 212.555.0134)": "212.555.0134",
        "+1 212 555 0134 ext. 12": "+1 212 555 0134 ext. 12",
        "212-555-0134x77": "212-555-0134x77",
        "+44 20 7946 0958": "+44 20 7946 0958",
        "0044 20 7946 0958": "0044 20 7946 0958",
        "07700 900123": "07700 900123",
        "+33 (0)1 99 00 12 34": "+33 (0)1 99 00 12 34",
        "01.99.00.12.34": "01.99.00.12.34",
        "Call 555 0134": "555 0134",
        "555 0134 (fax)": "555 0134",
        "Téléphone : 2125550134": "2125550134",
        "212-555-0134 2 times": "212-555-0134",
        "212-555-0134 2nd floor": "212-555-0134",
    },
    "card": {
        "4111111111111111": "4111111111111111",
        "card 4111 1111 1111 1111, 12/30": "4111 1111 1111 1111",
        "5555-5555-5555-4444": "5555-5555-5555-4444",
        "3782 822463 10005": "3782 822463 10005",
        "4111 1111 1111 1111 123": "4111 1111 1111 1111",
        "6011 0000 0004 0000": "6011 0000 0004 0000",
        "6011111111111117 and so on": "6011111111111117",
    },
    "iban": {
        "GB82 WEST 1234 5698 7654 32": "GB82 WEST 1234 5698 7654 32",
        "de89370400440532013000": "de89370400440532013000",
        "NO93 8601 1117 947 is mine": "NO93 8601 1117 947",
        "(FR1420041010050500013M02606)": "FR1420041010050500013M02606",
    },
    "ssn": {"SSN 078-05-1120.": "078-05-1120", "219 09 9999": "219 09 9999", "social security: 078051120": "078051120"},
    "ip": {
        "from 192.0.2.44.": "192.0.2.44",
        "198.51.100.7:8080": "198.51.100.7",
        "[2001:db8::8a2e:370:7334]:443": "2001:db8::8a2e:370:7334",
        "2001:DB8:0:0:8:800:200C:417A": "2001:DB8:0:0:8:800:200C:417A",
        "fe80::1 is down": "fe80::1",
        "The server 192.0.2.44 answers": "192.0.2.44",
    },
    "url": {
        "See https://www.example.org/a?b=c#d.": "https://www.example.org/a?b=c#d",
        "(see http://example.org/a_(b))": "http://example.org/a_(b)",
        "[x](https://example.org/x)": "https://example.org/x",
        "www.example.org!": "www.example.org",
        "ftp://192.0.2.1/f": "ftp://192.0.2.1/f",
        "http://localhost:8000/": "http://localhost:8000/",
    },
}

LEFT = [
    "mira@localhost", "@example.org", "mira@example.o", "mira@-example.org", "a @ b.org",
    "2024-05-17 10:15:22", "17.05.2024", "1990-1995", "call between 1990-1995", "0.123456789",
    "order 212-555-0134", "$212 555 0134", "invoice no. 555 0134", "555 0134", "2125550134", "call 12 times",
    "call + 150 (99150", "contact us for 555 013 421 EUR", "1 2 3 4 5 6 7 8", "x212-555-0134y", "+1234",
    "+1234567890123456", "2 + 68940000",
    "4111111111111112", "4111 1111 1111 1112", "1234 5678 9012 3452", "41 11 11 11 11 11 11 11", "a4111111111111111",
    "0000 0000 0000 0000", "4111 1111 1111",
    "GB83 WEST 1234 5698 7654 32", "GB82 WEST 1234 5698 7654", "ZZ82 WEST 1234 5698 7654 32",
    "DE00 3704 0044 0532 0130 86", "DE89370400440532013000X",
    "000-12-3456", "666-12-3456", "912-34-5678", "578-00-1120", "578-05-0000", "078051120", "578-05 1120",
    "2.0.1", "1.2.3.4.5", "256.1.1.1", "version 1.2.3.4", "v1.2.3.4", "1.2.3.4-beta", "127.0.0.1", "::1", "std::string",
    "12:34:56", "a::b", "::", "1:2:3",
    "http://", "www.", "http://nodot", "http://[::1/", "file.py", "e.g. this",
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text", "value"), [(kind, *case) for kind, cases in TAKEN.items() for case in cases.items()]
)
def test_taken(kind: str, text: str, value: str) -> None:
    assert found(text) == [(kind, value)]


@pytest.mark.parametrize("text", LEFT)
def test_left(text: str) -> None:
    assert found(text) == []


def test_a_checksum_knows_every_wrong_digit() -> None:
    for number in ("4111111111111111", "378282246310005", "GB82WEST12345698765432"):
        assert len(found(number)) == 1
        for at in range(4, len(number)):
            if number[at].isdigit():
                wrong = number[:at] + str((int(number[at]) + 1) % 10) + number[at + 1 :]
                assert found(wrong) == [], wrong


def test_luhn_and_entropy() -> None:
    assert [digit for digit in "0123456789" if luhn("7992739871" + digit)] == ["3"]  # ISO/IEC 7812's own example
    assert entropy("aaaa") == 0
    assert entropy("abcdabcd") == pytest.approx(2)
    assert entropy("0123456789abcdef") == pytest.approx(4)


# --- names -----------------------------------------------------------------------------------------------------


def test_names_are_the_rows_own() -> None:
    text = "Dear Dr. Mira Quill, Mira's order is sent. MIRA QUILL; Quills are birds, admiral, mira. Ms Quill: hello."
    expected = ["Mira Quill", "Mira", "MIRA QUILL", "Quill"]
    assert found(text, names=["Dr. Mira Quill"]) == [("name", name) for name in expected]
    assert found(text) == []
    assert found("Mira \n Quill", names=["Mira Quill"]) == [("name", "Mira \n Quill")]


def test_short_parts_particles_and_titles_are_no_names() -> None:
    assert found("Jo van Elm took the van to Jo and Dr Elm.", names=["Dr Jo van Elm"]) == [
        ("name", "Jo van Elm"),
        ("name", "Elm"),
    ]
    assert found("Dr. No, 12", names=["Dr.", "", "12", "No"]) == []
    assert found("O'Hara-Lund (a.b)", names=["O'Hara-Lund", "(a.b)"]) == [("name", "O'Hara-Lund")]


# --- overlaps --------------------------------------------------------------------------------------------------


def test_of_two_that_overlap_one_wins() -> None:
    assert found("mail mira@www.example.org") == [("email", "mira@www.example.org")]
    assert found("https://example.org/?to=mira@example.org&ip=192.0.2.1") == [
        ("url", "https://example.org/?to=mira@example.org&ip=192.0.2.1")
    ]
    assert found("call 4111 1111 1111 1111") == [("card", "4111 1111 1111 1111")]
    assert found("call 4111 1111 1111 1111", kinds=["phone"]) == []
    assert found("phone 078-05-1120") == [("ssn", "078-05-1120")]
    assert found("Mira.Quill@example.org", names=["Mira Quill"]) == [("email", "Mira.Quill@example.org")]
    assert found("192.0.2.1 212-555-0134") == [("ip", "192.0.2.1"), ("phone", "212-555-0134")]


def test_resolve_keeps_the_longest_then_the_first() -> None:
    long, inside, beside = Span(2, 9, "url", "x" * 7), Span(3, 5, "ip", "x" * 2), Span(9, 10, "name", "x")
    twin, across = Span(2, 9, "email", "x" * 7), Span(0, 4, "phone", "x" * 4)
    assert without_overlaps([beside, inside, across, long, twin]) == [long, beside]
    assert without_overlaps([]) == []


def test_kinds_choose() -> None:
    text = "mira@example.org, 192.0.2.1"
    assert found(text, kinds=["ip"]) == [("ip", "192.0.2.1")]
    with pytest.raises(ValueError, match=r"\['mail'\]"):
        find_personal(text, kinds=["mail"])


# --- secrets: put together here, so that no scanner takes this file for a leak ----------------------------------

BODY = "Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2Yz3"  # 39 characters
KEY_BLOCK = "-----BEGIN RSA {}-----\nMIIBxyz+/=\n-----END RSA {}-----".replace("{}", "PRIVATE" + " KEY")
SECRETS = {
    "aws_key": "AKIA" + "IOSFODNN7EXAMPLE",
    "github_token": "ghp_" + BODY[:36],
    "slack_token": "xoxb-" + "1234567890-" + BODY[:20],
    "openai_key": "sk-" + "proj-" + BODY,
    "google_key": "AIza" + BODY[:35],
    "huggingface_token": "hf_" + BODY[:34],
    "stripe_key": "sk_live_" + BODY[:24],
    "jwt": "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxIn0xxx.c2ln-bmF0_dXJl",
    "private_key": KEY_BLOCK,
}


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_by_their_issuers_shape(kind: str) -> None:
    text = f"It is {SECRETS[kind]}, keep it."
    assert [(span.kind, span.text) for span in find_secrets(text)] == [(kind, SECRETS[kind])]
    if kind != "private_key":
        assert find_secrets(f"x{SECRETS[kind]}") == find_secrets(f"²{SECRETS[kind]}") == []


@pytest.mark.parametrize(
    "text",
    ["API_KEY={}", 'password: "{}"', "client_secret => '{}';", '{{"access_token": "{}"}}', "Authorization: Bearer {}."],
)
def test_secrets_by_their_assignment(text: str) -> None:
    value = BODY[:24]
    assert [(span.kind, span.text) for span in find_secrets(text.format(value))] == [("assigned_secret", value)]


@pytest.mark.parametrize(
    "text",
    [
        "password: see-the-handbook",
        "token=aaaaaaaaaaaa1",
        "secret = 12345678901234",
        "max_tokens=4096",
        "sk-short",
        "the sk-circle-fading-spinner-class",
        f"git sha {BODY}",
        "the bearer of 3 letters",
        "-----BEGIN CERTIFICATE-----",
    ],
)
def test_no_secrets(text: str) -> None:
    assert find_secrets(text) == []


def test_a_key_cut_off_is_a_secret_still() -> None:
    cut = KEY_BLOCK[: KEY_BLOCK.index("-----END")].rstrip()
    assert [span.text for span in find_secrets(f"a\n{cut}\n")] == [cut]


# --- pseudonyms -------------------------------------------------------------------------------------------------

NAMES = ["Mira Quill", "Ada Elm-Lund"]
VALUES = [value for cases in TAKEN.values() for value in cases.values()] + list(SECRETS.values())
VALUES += ["Mira Quill", "QUILL", "Ada", "Elm-Lund", "GB29 NWBK 6016 1331 9268 19", "call 555 0199", "api_key=" + BODY]


def spans_of(text: str) -> list[Span]:
    return [*find_secrets(text), *find_personal(text, names=NAMES)]


def test_pseudonyms_belong_to_nobody_and_keep_their_shape() -> None:
    book = PseudonymMap()
    text = "; ".join(value for cases in TAKEN.values() for value in list(cases.values())[:2]) + "; Mira Quill, Mira"
    assert pseudonymize(text, spans_of(text), book) == (
        "person1@example.org; person2@example.org; 200-555-0100; 200 555 0101; 0000000000000000; 0000 0000 0000 0001; "
        "GB00 0000 0000 0000 0000 00; de00000000000000000001; 000-00-0000; 000 00 0001; 192.0.2.1; 192.0.2.2; "
        "https://site1.example.org; https://site2.example.org; Person1 Person2, Person1"
    )
    assert pseudonymize("2001:db8::5:5", spans_of("2001:db8::5:5"), book) == "2001:db8::0:3"
    assert pseudonymize(SECRETS["aws_key"], spans_of(SECRETS["aws_key"]), book) == "withheld-aws-1"
    assert len(book) == 18


def test_a_value_has_one_pseudonym_in_every_row() -> None:
    book = PseudonymMap()
    rows = ["Ask mira@example.net", "mira@example.net or ada@example.net", "ada@example.net"]
    made = [pseudonymize(row, spans_of(row), book) for row in rows]
    assert made == ["Ask person1@example.org", "person1@example.org or person2@example.org", "person2@example.org"]


def test_a_pseudonym_is_never_what_the_text_already_says() -> None:
    book = PseudonymMap()
    text = "mira@example.net is not person1@example.org, 192.0.2.7 is not 192.0.2.1"
    made = pseudonymize(text, spans_of(text), book)
    assert "person1@" not in made
    assert restore(made, book) == text
    rows = ["312-555-0134", "200-555-0100"]
    book = PseudonymMap()
    for row in rows:
        book.reserve(spans_of(row))
    made = "|".join(pseudonymize(row, spans_of(row), book) for row in rows)
    assert made == "200-555-0101|200-555-0102"
    assert restore(made, book) == "|".join(rows)


def test_a_pseudonym_within_a_word_is_none() -> None:
    book = PseudonymMap()
    assert pseudonymize("Mira", spans_of("Mira"), book) == "Person1"
    assert restore("Person12 xPerson1 Person1's", book) == "Person12 xPerson1 Mira's"


def test_a_span_of_another_text_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'Mira'"):
        pseudonymize("Hello", [Span(0, 4, "name", "Mira")], PseudonymMap())


def test_many_pseudonyms_differ_and_a_full_pseudonym_map_says_so() -> None:
    book = PseudonymMap()
    made = {book.pseudonym("ip", f"value {number}") for number in range(2000)}
    assert len(made) == 2000
    assert {each.rsplit(".", 2)[0] for each in made} == {"192.0", "198.51", "203.0", "198.18"}
    book._numbers["phone"], book._numbers["ip"] = 80_000, 515 * 254
    for kind in ("phone", "ip"):
        with pytest.raises(DataError, match="pseudonyms are used"):
            book.pseudonym(kind, "212 555 0134")


piece = (
    st.sampled_from(VALUES) | st.text(max_size=6) | st.sampled_from(["call", "order", "token:", "\n", "Person1", "("])
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(piece, max_size=6).map(" ".join), max_size=3))
def test_pseudonyms_are_undone_exactly_and_given_once(rows: list[str]) -> None:
    text = " | ".join(rows)
    book = PseudonymMap()
    spans = spans_of(text)
    made = pseudonymize(text, spans, book)
    assert restore(made, book) == text
    assert pseudonymize(made, spans_of(made), book) == made
    book.reserve(spans)
    assert pseudonymize(text, spans, book) == made


@settings(max_examples=100, deadline=None)
@given(st.lists(piece, max_size=8).map("".join))
def test_spans_are_in_order_apart_and_no_part_of_a_word(text: str) -> None:
    spans = find_personal(text, names=NAMES)
    assert [text[span.start : span.end] for span in spans] == [span.text for span in spans]
    assert all(first.end <= second.start for first, second in pairwise(spans))
    assert {span.kind for span in spans} <= set(KINDS)
    for span in [*spans, *find_secrets(text)]:
        for at in (span.start, span.end):
            assert not (0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum()), span


def test_a_pseudonym_map_is_kept_for_its_owner_only(tmp_path: Path) -> None:
    path, book = tmp_path / "keys" / "book.json", PseudonymMap()
    text = "Mira Quill, mira@example.net, \ud800@example.net"
    made = pseudonymize(text, spans_of(text), book)
    book.reserve([Span(0, 19, "email", "person3@example.org")])
    book.save(path)
    book.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["book.json"]
    again = PseudonymMap.load(path)
    assert restore(made, again) == text
    assert pseudonymize(text, spans_of(text), again) == made
    assert again.pseudonym("email", "ada@example.net") == book.pseudonym("email", "ada@example.net")
    assert again.pseudonym("email", "ada@example.net") != "person3@example.org"


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"entries": [1]}', '{"entries": [["a"]]}'])
def test_a_file_that_is_no_pseudonym_map_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "book.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match="not a pseudonym map"):
        PseudonymMap.load(path)


# --- time ------------------------------------------------------------------------------------------------------

ALL = [value for value in vars(patterns).values() if isinstance(value, re.Pattern)]
ALL += [pattern for *_, pattern in patterns.SECRETS] + list(patterns.IBAN_SHAPES.values())
REPEATS = {codes.MAX_REPEAT, codes.MIN_REPEAT}  # a possessive repeat never goes back


def repeats_in_repeats(tree: Any, within: bool = False) -> Iterator[Any]:
    """Unbounded repeats that may go back, inside another repeat that may: the shape of exponential time."""
    for code, value in tree:
        unbounded = code in REPEATS and value[1] == codes.MAXREPEAT
        if within and unbounded:
            yield value
        inside = within or (code in REPEATS and value[1] > 1)
        for part in value if isinstance(value, tuple | list) else [value]:
            for branch in part if isinstance(part, list) else [part]:
                if isinstance(branch, parser.SubPattern):
                    yield from repeats_in_repeats(branch, inside)


@pytest.mark.parametrize("pattern", ALL, ids=lambda pattern: pattern.pattern[:30])
def test_no_pattern_repeats_repeats(pattern: re.Pattern[str]) -> None:
    assert list(repeats_in_repeats(parser.parse(pattern.pattern, pattern.flags))) == []


@pytest.mark.parametrize("pattern", [r"(a+)+b", r"(?:x|(?:\w*,)){2,9}", r"(?:(?:a|b+)c){3}"])
def test_repeats_in_repeats_are_seen(pattern: str) -> None:
    assert len(list(repeats_in_repeats(parser.parse(pattern)))) == 1
