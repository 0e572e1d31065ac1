"""Each kind of defect finds its planted places and leaves sound texts alone; a repair is settled and can be undone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tunesmith.data.finding import Defect
from tunesmith.data.language import Language
from tunesmith.data.repair_rows import Edit, RepairedText, repair, undo
from tunesmith.data.run_checks import text_detectors
from tunesmith.errors import DataError

KINDS = [
    "collapsed_list",
    "machine_tell",
    "markup",
    "mojibake",
    "placeholder",
    "repetition",
    "truncated",
    "whitespace",
    "wrong_language",
]


def defects_of(kind: str, text: str, **options: str) -> list[Defect]:
    defects = list(text_detectors()[kind](text, **options))
    for defect in defects:
        assert defect.kind == kind
        assert defect.text == text[defect.start : defect.end]
        assert defect.why
    return defects


def texts(kind: str, text: str) -> list[str]:
    return [defect.text for defect in defects_of(kind, text)]


def test_the_checks_that_look_inside_a_text() -> None:
    assert sorted(text_detectors()) == KINDS


# --- lists ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("1. Mix the dough 2. Let it rest 3. Bake", "1. Mix the dough\n2. Let it rest\n3. Bake"),
        ("Do this: 1) Open it. 2) Press Go. 3) Wait.", "Do this:\n1) Open it.\n2) Press Go.\n3) Wait."),
        ("So: (1) Rest. (2) Drink water. (3) Sleep.", "So:\n(1) Rest.\n(2) Drink water.\n(3) Sleep."),
        ("1.Open 2.Close 3.Lock", "1.Open\n2.Close\n3.Lock"),
        ("Step 1: Dig a hole. Step 2: Plant. Step 3: Water.", "Step 1: Dig a hole.\nStep 2: Plant.\nStep 3: Water."),
        ("• a • b • c", "• a\n• b\n• c"),
        ("Buy: • milk  • eggs • flour", "Buy:\n• milk\n• eggs\n• flour"),
        ("- apples - pears - plums", "- apples\n- pears\n- plums"),
        ("You need: - a pan - oil - salt", "You need:\n- a pan\n- oil\n- salt"),
        ("You need: * a pan * oil * salt\nEnjoy!", "You need:\n* a pan\n* oil\n* salt\nEnjoy!"),
        ("Before\n1. x-ray 2. wait 3. go home\nAfter", "Before\n1. x-ray\n2. wait\n3. go home\nAfter"),
        ("1. Two runs a week 2. One day 3. Rest", "1. Two runs a week\n2. One day\n3. Rest"),  # 'week 2.' is no label
        ("I know: * Ovens* Yeast* Rye", "I know:\n* Ovens\n* Yeast\n* Rye"),
        ("1. I bake.2. I sell.3. I rest.", "1. I bake.\n2. I sell.\n3. I rest."),
        ("I know: • Ovens, • Yeast, • Rye", "I know:\n• Ovens,\n• Yeast,\n• Rye"),
    ],
)
def test_a_list_in_one_line_is_found_and_put_back_into_lines(text: str, mended: str) -> None:
    (defect,) = defects_of("collapsed_list", text)
    assert "3 items" in defect.why
    assert repair(text).text == mended
    assert not defects_of("collapsed_list", mended)


@pytest.mark.parametrize(
    "text",
    [
        "1. Mix\n2. Rest\n3. Bake",
        "1. Mix 2. Bake",  # two items
        "It rose from 1.5 to 2.5 and then to 3.5 percent.",
        "It costs $1. Then $2. Then $3. That is all.",
        "Versions 1.0, 2.0 and 3.0 are out; 1.0.2 is not.",
        "On 1. May, 3. June and 7. July we are closed.",
        "A well-known, long-term, low-cost plan.",
        "Open 9 - 12 and 14 - 18 and 19 - 20.",
        "We went - as usual - to the shop - too late.",
        "There are three: 1) open it, 2) wait, and 3) go.",
        "There are three: 1) Open it, 2) Wait, and 3) Go.",
        "Look in column A1. Then in A2. Then in A3. That is all.",
        "A- Levels, B- Movies, C- Parts",
        "1. e4 e5 2. Nf3 Nc6 3. Bb5 a6",
        "2 * 3 * 4 * 5 is 120.",
        "Red • Green • Blue • Black",
        "- Bread - white - sliced - fresh\n- Milk",  # dashes inside an item of a true list
        "Chords: C - G - 7 - F",
        "`1. a 2. b 3. c` is an example",
        "```\n1. a 2. b 3. c\n```",
    ],
)
def test_what_is_no_list_in_one_line(text: str) -> None:
    assert not defects_of("collapsed_list", text)


# --- placeholders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("Kind regards,\n[Your Name]", ["[Your Name]"]),
        ("A letter to [potential client] at [start time].", ["[potential client]", "[start time]"]),
        ("I am {{name}}, made by {{ author }}.", ["{{name}}", "{{ author }}"]),
        ("I apply to <company> as <Job Title>.", ["<company>", "<Job Title>"]),
        ("Dear [Hiring Manager's Name], call {phone number}.", ["[Hiring Manager's Name]", "{phone number}"]),
        ("On [Date] at [company_address].", ["[Date]", "[company_address]"]),
        ("Call XXX-XXXX now.", ["XXX"]),
        ("Lorem ipsum dolor sit amet.", ["Lorem ipsum"]),
        ("Please insert your name here.", ["insert your name here"]),
        ("TODO: write the end. [TBD]", ["TODO", "[TBD]"]),
        ("Signed: ________, (your full name), YOUR TITLE", ["(your full name)", "YOUR TITLE", "________"]),
        ("I, .........., saw the $NAME and %COMPANY% of @@PLACE@@", ["$NAME", "%COMPANY%", ".........."]),
        ("The day is TBD. I baked for [X] years at [specific shop].", ["[specific shop]", "TBD", "[X]"]),
        ("[Describe one success here.]", ["[Describe one success here.]"]),
        ("I worked at ABC Company.", ["ABC Company"]),
    ],
)
def test_slots_nobody_filled(text: str, slots: list[str]) -> None:
    assert texts("placeholder", text) == slots


@pytest.mark.parametrize(
    "text",
    [
        "See [your name](https://example.org/name) and [the date][1].",
        "As shown in [1] and [citation needed]. [laughs]",
        "- [ ] buy milk\n- [x] call",
        '{"name": "Ada", "company": ["x", "y"], "title": "none of it"}',
        "<p>Fill in the <address>street</address> below.</p>",
        "Use `[Your Name]` or `{{name}}` in the template.",
        "```\nHello {{name}}\n```",
        "def greet(name):\n    return f'Hello {name}'",
        "Super Bowl XXX was in 1996, and the XXL shirt is mine.",
        "Put it on your to-do list: TODO lists help.",
        "x[date] = y[name]",
        "The ABC reported that XYZ is an axis.",
        "Drive to site A (your employer) and back.",
        "Well...... I do not know. And so on ...",
        "Chapter 1 ............ 5",
        "echo $HOME and $PATH; 100% of it",
        "The IBAN is DE00+XXX.",
        "YOUR turn now, and JOB done.",
    ],
)
def test_what_is_no_slot(text: str) -> None:
    assert not defects_of("placeholder", text)


def test_a_made_up_name_is_only_a_note() -> None:
    assert [defect.severity for defect in defects_of("placeholder", "At XYZ Corp, {{name}}")] == ["error", "note"]


# --- machine tells -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "severity"),
    [
        ("As an AI language model, I have no taste.", "error"),
        ("As an AI, I do not eat.", "error"),
        ("I'm just a language model.", "error"),
        ("As of my last knowledge update, it was open.", "error"),
        ("My training data ends there.", "error"),
        ("I cannot assist with that request.", "warning"),
        ("I’m sorry, but I can’t do that.", "warning"),
        ("I am unable to provide this.", "warning"),
        ("Fine.\n### Response: Yes.", "error"),
        ("Yes.<|im_end|>", "error"),
        ("Assistant: Gladly.", "error"),
        ("[INST] Say yes [/INST] Yes.", "error"),
        ("Yes.</s>", "error"),
        ("Sure! Here is a letter for the job:\n\nDear all,", "warning"),
        ("Here's the draft that you wanted:\n\nDear all,", "warning"),
        ("**Draft**\n\nHere is a first version:\n\nDear all,", "warning"),
        ("As requested, I have written a note.\n\nDear all,", "warning"),
        ("Dear all,\n\nYes.\n\nFeel free to adapt the text.", "warning"),
        ("Yes.\n\nWould you like me to make it longer?", "warning"),
        ("Yes.\n\nLet me know if you need any further changes.", "warning"),
        ("Yes.\n\nSincerely,\nIda Fenn\n\nI hope this helps!", "warning"),
        ("Yes.\n\n(This text was created by ChatGPT.)", "warning"),
        ("Yes.\n\n[End of letter]", "warning"),
        ("I am unable to write this letter, since I know no names.", "warning"),
        ("Great question! It is blue.", "warning"),
        ("Time to shine, then.\n\nDear Ms Orme,\n\nI bake.", "warning"),  # a letter begins with its salutation
        (
            "I bake.\n\nWith kind regards,\nIda Fenn\n\nThis has 140 words in all.",
            "warning",
        ),  # and ends with its signature
        ("Let us delve into the matter.", "note"),
        ("In today’s fast-paced world we hurry.", "note"),
    ],
)
def test_traces_of_the_machine(text: str, severity: str) -> None:
    assert {defect.severity for defect in defects_of("machine_tell", text)} == {severity}


@pytest.mark.parametrize(
    "text",
    [
        "As an AI engineer I build models.",
        "I split my training data in two.",
        "I'm sorry, but I can't make it to dinner.",
        "I cannot wait to see you.",
        "Our assistant: a kind person.",
        "My assistant will call you.",
        "The language model was trained in May.",
        "### Response times",
        "The token `<|im_end|>` ends a turn.",
        "Sell it. I hope this helps!",
        "Let me know if you have any questions.",
        "Feel free to call me at any time.",
        "Of course! I'd be happy to help you with your order. Here are the steps:\n\n1. Open it.",
        "Here is the church, and here is the steeple.",
        "Sure, I will come.",
        "What do you want me to do?",
        "Subject: The baker's post.\n\nDear Ms Orme,\n\nI bake.",
        "14 May 2024.\n\nDear Ms Orme,\n\nI bake.",
        "I bake.\n\nKind regards,\nIda Fenn\n\nP.S. I sell rye bread, too.",
        "I bake.\n\nKind regards,\nIda Fenn\n\nPhone: 555-0100 or by mail.",
        "The world is fast.",
    ],
)
def test_what_people_write(text: str) -> None:
    assert not defects_of("machine_tell", text)


# --- letters and blanks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "places", "mended"),
    [
        ("a cafÃ© here", ["Ã©"], "a café here"),
        ("a masterâ€™s degree", ["â€™"], "a master’s degree"),
        ("one\nâ€œtwoâ€\x9d\nthree", ["â€œtwoâ€\x9d"], "one\n“two”\nthree"),
        ("lost \ufffd\ufffd letters", ["\ufffd\ufffd"], "lost \ufffd\ufffd letters"),
        ("lost \ufffd, cafÃ©", ["Ã©", "\ufffd"], "lost \ufffd, café"),
        ("“Curly” quotes, ｆｕｌｌ width, ﬁne, naïve", [], "“Curly” quotes, ｆｕｌｌ width, ﬁne, naïve"),
        ("Ça va? Ärger über Öl, señor. 日本語 Привет", [], "Ça va? Ärger über Öl, señor. 日本語 Привет"),
        ("plain", [], "plain"),
    ],
)
def test_letters_in_the_wrong_encoding(text: str, places: list[str], mended: str) -> None:
    assert texts("mojibake", text) == places
    assert repair(text).text == mended


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("one \ntwo\t\nthree", "one\ntwo\nthree"),
        ("one\n\n\n\n\ntwo", "one\n\ntwo"),
        ("one\x00\x07two\ufeff", "onetwo"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("one\x0ctwo", "one\ntwo"),
        ("\n\n  one  ", "  one"),
        ("one  \n\ntwo", "one\n\ntwo"),
        (" \r\n ", ""),
        ("I\u200b bake\u2060 rye", "I bake rye"),
        ("I\xa0bake\xa0rye\xa0bread", "I bake rye bread"),
        ("I bake rye.\tI sell it.", "I bake rye. I sell it."),
        (
            "I  bake rye  bread for the  whole town and  like it much",
            "I bake rye bread for the whole town and like it much",
        ),
        ("Dear all,\n\n   I bake rye.\n\n   I sell it.", "Dear all,\n\nI bake rye.\n\nI sell it."),
        ("```\nx = 1 \n\n\n\n\ny\n```\r\nend \nof it", "```\nx = 1 \n\n\n\n\ny\n```\nend\nof it"),
    ],
)
def test_broken_blanks(text: str, mended: str) -> None:
    assert defects_of("whitespace", text)
    assert repair(text).text == mended


@pytest.mark.parametrize(
    "text",
    [
        *("a line  \nbroken as in Markdown", "one\n\n\ntwo", "    indented", "a\tb", ""),
        "I said.  Then I went.  So did she.",  # a typist's two blanks
        "Name    Age    Town\nAda     36     Bath",
        "One.\tTwo.\nThree.\tFour.",  # columns
        "1.\tMix.\n2.\tBake.",
        "Dix\xa0% de plus, dit-il\xa0; et il partit vers la ville.",
        "می\u200cخواهم، \u200fسلام",
        "1. Mix\n\n   and stir\n\n   well",  # a list's item goes on
        "👩\u200d🍳 bakes",
    ],
)
def test_sound_blanks(text: str) -> None:
    assert not defects_of("whitespace", text)


def test_a_slip_is_mended_but_only_a_note() -> None:
    slip = "one \ntwo  three is all that I wanted to say\n"
    assert {defect.severity for defect in defects_of("whitespace", slip)} == {"note"}
    assert repair(slip).text == "one\ntwo three is all that I wanted to say"
    assert {d.severity for d in defects_of("whitespace", "one    \ntwo")} == {"warning"}


# --- markup --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "places", "mended"),
    [
        ("Fish &amp; chips", ["&amp;"], "Fish & chips"),
        ("Fish &amp;amp; chips", ["&amp;amp;"], "Fish & chips"),
        ("It&#39;s &quot;so&quot;&nbsp;good", ["&#39;", "&quot;", "&quot;", "&nbsp;"], 'It\'s "so" good'),
        ("5 &lt; 6", ["&lt;"], "5 < 6"),
        ("A <b>bold</b> word<br/>", ["<b>", "</b>", "<br/>"], None),
        ("Look:\n```python\nx = 1", ["```python"], None),
        ("The HTML tag <b> and &amp;", [], None),
        ("Write &lt;b&gt; for bold", [], None),
        ("AT&T; R&D; &unknownname;", [], None),
        ("3 < 4 and 5 > 4", [], None),
        ("Use `<b>` and `&amp;`", [], None),
        ("```\n<b>&amp;</b>\n```", [], None),
    ],
)
def test_markup_in_prose(text: str, places: list[str], mended: str | None) -> None:
    assert texts("markup", text) == places
    assert repair(text).text == (text if mended is None else mended)


# --- truncated -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("The museum is open every day, but on Mondays the", "ends in 'the'"),
        ("We sell bread, rolls and cakes, and we also bake,", "a comma"),
        ("The plan has three parts that all begin today (", "opened bracket"),
        ("The plan has three parts that begin today (see the next page", "stays open"),
        ('She turned to all of us and said "I will never go', "stays open"),
        ("Here are the steps for a good cup of tea:\n1. Boil water\n2.", "list marker"),
    ],
)
def test_a_text_that_breaks_off(text: str, why: str) -> None:
    assert [why in defect.why for defect in defects_of("truncated", text)] == [True]


@pytest.mark.parametrize(
    "text",
    [
        "The museum is open every day but Monday.",
        "The museum is open every day but Monday",  # no full stop alone is no sign
        "What is it good for",
        "A short answer of the",
        "I would be glad to hear from you soon.\n\nKind regards,",
        "Buy these for the cake of the day:\n- flour\n- something to stir it with",
        "Here is the code that you asked me for:\n```\nx = y and\n```",
        "I left my coat at the inn (the old one), said he, and went home",
        "We will all meet at seven at the usual place 🎉",
        "Read all about these rules (and more) at https://example.org/the",
    ],
)
def test_a_text_that_ends(text: str) -> None:
    assert not defects_of("truncated", text)


# --- language ------------------------------------------------------------------------------------------------

SAID = {  # eight languages, own sentences
    "en": "The shop is open and you can pay with a card, but they do not take checks.",
    "de": "Der Laden ist offen und Sie können mit der Karte zahlen, aber nicht mit einem Scheck.",
    "fr": "Le magasin est ouvert et vous pouvez payer avec une carte, mais pas par chèque dans les rayons.",
    "es": "La tienda está abierta y usted puede pagar con una tarjeta, pero no se aceptan los cheques.",
    "it": "Il negozio è aperto e si può pagare con la carta, ma non sono accettati gli assegni della banca.",
    "pt": "A loja está aberta e você pode pagar com um cartão, mas não com cheques, para os clientes também.",
    "nl": "De winkel is open en je kunt met een kaart betalen, maar niet met het oude geld van de bank.",
    "pl": "Sklep jest otwarty i można płacić kartą, ale nie przyjmują czeków, które są już nieważne od roku.",
}


@pytest.mark.parametrize("code", SAID)
def test_each_language_is_known(code: str) -> None:
    assert Language.of([SAID[code]]) == Language("Latin", code)
    assert not defects_of("wrong_language", SAID[code], language=code)
    assert bool(defects_of("wrong_language", SAID[code])) == (code != "en")


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Магазин открыт каждый день до вечера.", "Cyrillic"),
        ("商店每天都营业，您可以用卡付款，但是不能用支票付款哦。", "CJK"),
        ("Το κατάστημα είναι ανοιχτό κάθε μέρα.", "Greek"),
        ("المتجر مفتوح كل يوم حتى المساء", "Arabic"),
        ("가게는 매일 저녁까지 문을 열고 카드로 결제할 수 있습니다", "Hangul"),
    ],
)
def test_another_script(text: str, script: str) -> None:
    assert [defect.why for defect in defects_of("wrong_language", text)] == [f"written in {script}, not Latin"]
    assert not defects_of("wrong_language", text, script=script, language="")
    assert len(defects_of("wrong_language", SAID["en"], script=script, language="")) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (SAID["en"] + " I have baked for you.\n\n" + SAID["de"], "continues as 'de', not 'en'"),
        (
            "Jag söker ett arbete på ert bageri. Jag har bakat bröd i många år och trivs när dagen börjar så tidigt.",
            "does not read as 'en'",
        ),
    ],
)
def test_a_part_in_another_language_and_an_unknown_language(text: str, why: str) -> None:
    (defect,) = defects_of("wrong_language", text)
    assert defect.why == why


def test_a_quotation_and_a_list_of_names_are_no_other_language() -> None:
    quoted = "In her speech she said this and no more: \n" + SAID["fr"] + "\n" + 6 * (SAID["en"] + " ")
    names = "Zoë, Chloë, Renée, José, Søren, Jürgen, Håkan, Łukasz, Dvořák, Gödel, Erdős, Poincaré, Noël, Málaga, Köln."
    assert not defects_of("wrong_language", quoted)
    assert not defects_of("wrong_language", names)


@pytest.mark.parametrize(
    "text", ["", "12345", "Привет", "der die das und", "I want to do it, as I do a lot.", "Tokyo 東京"]
)
def test_a_text_too_short_or_unclear_has_no_language(text: str) -> None:
    assert not defects_of("wrong_language", text)


def test_the_data_sets_language_is_the_most_frequent() -> None:
    assert Language.of([SAID["de"], SAID["de"], SAID["en"], "x"]) == Language("Latin", "de")
    assert Language.of([]) == Language("Latin", "en")


# --- repetition ----------------------------------------------------------------------------------------------


def test_repetition() -> None:
    loop = "I like the sea very much. " * 3
    (defect,) = defects_of("repetition", loop)
    assert (defect.severity, defect.start) == ("warning", 52)
    gram = "and so we went to the old house by the sea"
    (defect,) = defects_of("repetition", f"First {gram} {gram} then {gram} again")
    assert defect.severity == "warning"
    chorus = "\n".join(
        f"Line {n} says a wholly different thing about day {n * 7}\nOh sing it once more" for n in range(3)
    )
    rest = " ".join(f"word{n} other{n}." for n in range(30))
    (defect,) = defects_of("repetition", chorus + "\n" + rest)
    assert (defect.severity, defect.text) == ("note", "Oh sing it once more")


@pytest.mark.parametrize(
    "text",
    [
        "I like the sea very much. I like the sea very much.",
        "Yes. Yes. Yes. Yes.",
        "| a | b |\n| - | - |\n| - | - |\n| - | - |\n| - | - |",
        "```\nfoo bar baz qux\nfoo bar baz qux\nfoo bar baz qux\n```",
        "no no no no no no no no no no",  # the third six words would overlap the first
    ],
)
def test_no_repetition(text: str) -> None:
    assert not defects_of("repetition", text)


# --- repair --------------------------------------------------------------------------------------------------

FIELDS = {"Applicant Name": "Ada Example", "Hiring Company": "Tea & Sons", "Job Title": "Baker", "order_number": 17}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("Regards,\n[Your Name]", "Regards,\nAda Example"),
        ("At {{Company}} as <Job Title>", "At Tea & Sons as Baker"),
        ("At [Company Name]", "At Tea & Sons"),
        ("Order {{Order Number}}", "Order 17"),
        ("Dear [Name]", "Dear [Name]"),  # the reader
        ("Dear [Applicant Name]", "Dear [Applicant Name]"),
        ("On [Date]", "On [Date]"),  # no field
        ("My name is [Name]", "My name is [Name]"),  # may be anybody
    ],
)
def test_slots_are_filled_only_when_certain(text: str, filled: str) -> None:
    assert repair(text, FIELDS).text == filled
    assert repair(text).text == text


@pytest.mark.parametrize(
    "fields",
    [
        {"Company": "A", "Hiring Company": "B"},  # which?
        {"Company": ""},
        {"Company": "[Company]"},
        {"Company": "N/A"},
        {"Company": "two\nlines"},
        {"Company": "long " * 40},
        {"Company": None},
        {"Company": True},
        {"Companies": "A"},
    ],
)
def test_uncertain_values_fill_nothing(fields: dict[str, object]) -> None:
    assert repair("At {{Company}}", fields).text == "At {{Company}}"


def test_edits_have_the_originals_places() -> None:
    text = "CafÃ© &amp; bar: 1. Tea \r\n"
    done = repair(text)
    assert done.text == "Café & bar: 1. Tea"
    assert done.edits == (
        Edit(3, 5, "Ã©", "é", "mojibake"),
        Edit(6, 11, "&amp;", "&", "markup"),
        Edit(23, 26, " \r\n", "", "whitespace"),
    )


def test_undo_refuses_another_text() -> None:
    done = repair("one \ntwo &amp; three")
    with pytest.raises(DataError, match="changed after the repair"):
        undo("something else", done.edits)


PIECES: Sequence[str] = (
    *(
        "1. Mix ",
        "2. Bake ",
        "3. Eat",
        " - a",
        " • b",
        "• c ",
        ": ",
        "Dear ",
        "[Your Name]",
        "{{Company}}",
        "[",
        "]",
        "{{",
    ),
    *(
        "}}",
        "Company",
        "&amp;",
        "&",
        "amp;",
        "&lt;",
        "&#91;",
        "&#93;",
        "&nbsp;",
        "<b>",
        "```",
        "`",
        "\n",
        "\r",
        "\r\n",
        " ",
    ),
    *(
        "\t",
        "\x00",
        "\x1b[3",
        "1m",
        "\x85",
        "\ufeff",
        "Ã©",
        "â€™",
        "Ã",
        "\xa0",
        "é",
        "\ufffd",
        "日本",
        "word",
        "the",
        ",",
        ".",
    ),
    *("\u200b", "\xa0\xa0", "  ", ".\tNow", "\n\n  ", "a* B", "a2. B", "____", "(your name)"),
)
DIRTY = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
SOUND = (
    "word",
    "1.",
    "2)",
    "-",
    "a:",
    "[x]",
    "{y}",
    "R&D;",
    "<",
    "é,",
    "the",
    "`q`",
    "日本",
    "“so”",
    "3.5",
    "(and",
    "\nnext",
)
VALUES = st.sampled_from(
    ["Ada", "A &amp; B", "&", "amp;", "x &", "1. a 2. b 3. c", " - a - b - c", "Ã©", " b ", "[x]", ""]
)


@settings(max_examples=400, deadline=None)
@given(DIRTY | st.text(max_size=80), VALUES)
@example("1. a 2. b 3. c\r\n", "")
@example("&amp;" * 20, "&")
@example("{{Company}}amp;", "x &")
def test_a_repair_is_settled_and_can_be_undone(text: str, value: str) -> None:
    fields = {"Applicant Name": value, "Company": value}
    done = repair(text, fields)
    again = repair(done.text, fields)
    assert (again.text, again.edits) == (done.text, ())
    assert undo(done.text, done.edits) == text
    for edit in done.edits:
        assert text[edit.start : edit.end] == edit.before != edit.after
        assert edit.kind
    ends = [edit.end for edit in done.edits]
    assert all(end < edit.start for end, edit in zip(ends, done.edits[1:], strict=False))  # none touches another


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(SOUND), max_size=20).map(" ".join) | st.text(max_size=80))
def test_a_text_without_defects_stays_byte_for_byte(text: str) -> None:
    assume(not [defect for kind in KINDS for defect in defects_of(kind, text) if defect.fix is not None])
    assert repair(text) == RepairedText(text, ())


def test_a_text_that_does_not_settle_stays() -> None:
    nested = "fish &" + "#38;" * 20 + "amp; chips "  # each round uncovers one more entity
    assert repair(nested) == RepairedText(nested, ())
    assert repair("fish &#38;#38;amp; chips").text == "fish & chips"


def test_half_a_character_is_no_reason_to_stop() -> None:
    text = "a lone \ud83d surrogate, cafÃ© \n"  # json.loads gives these for a cut emoji
    done = repair(text)
    assert undo(done.text, done.edits) == text
    assert all(defects_of(kind, text) is not None for kind in KINDS)


@pytest.mark.parametrize("text", [*SAID.values(), "1. Mix\n2. Bake", "```\nx \n```"])
def test_sound_texts_have_no_defect(text: str) -> None:
    assert not [d for kind in KINDS if kind != "wrong_language" for d in defects_of(kind, text)]
    assert repair(text, FIELDS).text == text


@pytest.mark.parametrize(
    "unit",
    [
        "\t",
        " ",
        "\n",
        "\r",
        "\n ",
        "[",
        "{{",
        "<",
        "&amp;",
        "`",
        "```",
        "~~~",
        "1. a ",
        "• a ",
        " - a",
        "a ",
        "(",
        '"',
        "é",
        "Ã©",
    ],
)
def test_long_runs_are_looked_at_in_linear_steps(unit: str) -> None:
    """A square of 20,000 would take minutes: this ends, or the suite shows it among its slowest."""
    text = unit * (20_000 // len(unit))
    for kind in KINDS:
        defects_of(kind, text)
    assert undo(repair(text).text, repair(text).edits) == text
