"""The defects that can be planted into a letter: what real data sets hold, in several ways each.

A public function is a defect, named as the check that should find it. It takes a clean row, its own random numbers and
all rows, and returns the damaged row with a detail `way: what was done`, or None where the row cannot carry the defect.
"""

from __future__ import annotations

import html
import random
import re
import string
from collections.abc import Callable, Sequence

from tools.letter_parts import (
    COMPANY,
    ITEM,
    LETTER,
    NAME,
    NUMBERS,
    TITLE,
    Row,
    an,
    as_own,
    body,
    capital,
    demands,
    filled,
    own,
    prose,
    skills,
    texts,
    with_letter,
    with_sentence,
)

Damaged = tuple[Row, str] | None
Way = Callable[[Row, random.Random, Sequence[Row]], Damaged]


def empty(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """No letter: nothing, blanks, or a word that stands for nothing."""
    letter = draw.choice(["", "", "", " ", "\n", "   \n\n", "\t", "\u00a0", "N/A", "n/a", "None", "null", "nan", "-"])
    return with_letter(row, letter), f"{'word' if letter.strip() else 'blank'}: {letter!r}"


def too_short(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """A greeting, a first sentence or a note in place of the letter."""
    head, middle, tail = body(row[LETTER])
    first = re.split(r"(?<=[.?!])\s", middle)[0]
    ways = {
        "greeting": head.strip(),
        "greeting and sign-off": head.strip() + tail,
        "first sentence": first,
        "sign-off": tail.strip(),
        "note": _slots(draw.choice(texts("plant")["short"]), row),
    }
    way = draw.choice([*ways, "note", "note"])
    return with_letter(row, ways[way]), f"{way}: {ways[way]!r}"


def truncated(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """The end is missing, as when a limit of tokens or characters cut it off."""
    letter = row[LETTER]
    low, high = len(letter) * 3 // 10, len(letter) - len(body(letter)[2])
    function = r"\b(?:and|or|the|an?|of|to|in|with|for|that|which|at|by|my|is|are|from|as)\b(?= )"
    cuts = {
        "function word": [found.end() for found in re.finditer(function, letter)],
        "comma": [found.end() for found in re.finditer(r",(?= )", letter)],
        "inside a word": [found.start() + draw.randint(3, 4) for found in re.finditer(r"\b[a-z]{6,}\b", letter)],
        "inside a sentence": [found.end() for found in re.finditer(r"\b[a-z]{5,}(?= [a-z])", letter)],
        "list": [found.end() for found in re.finditer(r"\n(?:\d+[.)]|[-*•]) ?", letter)],
    }
    found = {way: [cut for cut in places if low < cut < high] for way, places in cuts.items()}
    found["sign-off"] = [high + 2 + draw.randint(3, 7)]
    way = draw.choice([way for way, places in found.items() if places])
    cut = draw.choice(found[way])
    return with_letter(row, letter[:cut]), f"{way}: ends in {letter[max(0, cut - 20) : cut]!r}"


def duplicate(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """The row once more: as it is, or as a second export wrote it."""
    way = draw.choice(["as it is", "as it is", "capitals", "spaces"])
    if way == "capitals":
        return {**row, COMPANY: row[COMPANY].upper(), TITLE: row[TITLE].lower()}, f"{way}: in company and title"
    if way == "spaces":
        return {**row, "Skillsets": row["Skillsets"].replace(", ", ",  "), LETTER: f"{row[LETTER]}\n"}, f"{way}: added"
    return row, f"{way}: the whole row"


def near_duplicate(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """The row once more with a light hand over the letter."""
    letter = row[LETTER]
    way = draw.choice(["words", "dropped sentence", "added sentence", "name"])
    if way == "name":
        name = draw.choice([other[NAME] for other in rows if other[NAME] != row[NAME]] or ["Robin Mayfly"])
        return {**row, NAME: name, LETTER: letter.replace(row[NAME], name)}, f"name: {row[NAME]} -> {name}"
    if way == "added sentence":
        sentence = draw.choice(texts("plant")["near_sentences"])
        return with_letter(row, with_sentence(letter, sentence, draw)), f"{way}: {sentence}"
    if way == "dropped sentence":
        start, end = draw.choice(prose(letter))
        sentences = re.split(r"(?<=[.?!]) ", letter[start:end])
        if len(sentences) > 1:
            gone = sentences.pop(draw.randrange(len(sentences)))
            return with_letter(row, letter[:start] + " ".join(sentences) + letter[end:]), f"{way}: {gone}"
    pairs = {word: other for word, other in texts("plant")["synonyms"].items() if re.search(rf"\b{word}\b", letter)}
    if not pairs:
        return None
    chosen = draw.sample(sorted(pairs), min(len(pairs), draw.randint(1, 3)))
    for word in chosen:
        letter = re.sub(rf"\b{word}\b", pairs[word], letter, count=1)
    return with_letter(row, letter), "words: " + ", ".join(f"{word} -> {pairs[word]}" for word in chosen)


def contradiction(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """The same fields with a letter that says the opposite of the first: no experience, no interest, another job."""
    said = texts("plant")
    way = draw.choice(["denial", "refusal", "other"])
    others = [other[TITLE] for other in rows if other[TITLE] not in own(row) + row[TITLE]] or ["Lighthouse Keeper"]
    numbers = [str(n) for n in range(11, 32) if str(n) not in own(row)]
    slots = {"skill": draw.choice(skills(row)), "a_other": an(draw.choice(others)), "n": draw.choice(numbers)}
    against = filled(draw.choice(said[f"contradiction_{way}"]), **slots)
    middle, close = draw.choice(said["contradiction_middle"]), draw.choice(said["contradiction_close"])
    opening = _slots(draw.choice(said["contradiction_open"]), row)
    head, _, tail = body(row[LETTER])
    return with_letter(row, f"{head}{opening} {against}\n\n{middle} {close}{tail}"), f"{way}: {against}"


def generic(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """A form letter that fits every row and names nothing of its own."""
    said = texts("plant")
    points = draw.sample(said["generic_body"], draw.randint(3, 5))
    cut = draw.randint(1, len(points) - 1)
    parts = [
        draw.choice(["Dear Hiring Manager,", "Dear Sir or Madam,", "To whom it may concern,", "Dear Recruiter,"]),
        f"{draw.choice(said['generic_open'])} {' '.join(points[:cut])}",
        f"{' '.join(points[cut:])} {draw.choice(said['generic_why'])}",
        draw.choice(said["generic_close"]),
        draw.choice(said["generic_sign"]),
    ]
    return with_letter(row, "\n\n".join(parts)), f"form: {len(points)} points that name nothing"


def ungrounded(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """A number, an employer, a degree or a skill that no field states, or the advert's demand as the writer's own."""
    ways: dict[str, Way] = {
        "number": _number,
        "employer": _employer,
        "degree": _degree,
        "skill": _skill,
        "demand": _demand,
    }
    for way in draw.sample(sorted(ways), len(ways)):
        if found := ways[way](row, draw, rows):
            return found[0], f"{way}: {found[1]}"
    return None


def collapsed_list(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """A list whose items have run together into one line."""
    paragraphs = row[LETTER].split("\n\n")
    at = next((place for place, text in enumerate(paragraphs) if len(_items(text)) > 1), None)
    if at is None:
        return None
    items = _items(paragraphs[at])
    before = paragraphs[at].split("\n")[: -len(items)]
    way = draw.choice(["marks", "marks", "bullets", "numbers", "tight", "commas"])
    bare = [ITEM.sub("", item) for item in items]
    joined = {
        "marks": " ".join(items),
        "bullets": " ".join(f"• {item}" for item in bare),
        "numbers": " ".join(f"{number}. {item}" for number, item in enumerate(bare, start=1)),
        "tight": "".join(items),
        "commas": ", ".join(items),
    }[way]
    own_line = draw.random() < 0.5
    paragraphs[at] = ("\n" if own_line else " ").join([*before, joined])
    return with_letter(row, "\n\n".join(paragraphs)), f"{way}: {len(items)} items"


def placeholder(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """A blank of a form that nobody filled in."""
    said, letter = texts("plant"), row[LETTER]
    way = draw.choice(["name", "company", "title", "lines"])
    shape = draw.choice(said[f"placeholders_{way}"])
    if way == "lines":
        at = draw.choice([0, *(end for _, end in prose(letter))])
        changed = f"{letter[:at]}\n\n{shape}{letter[at:]}" if at else f"{shape}\n\n{letter}"
    else:
        word = row[{"name": NAME, "company": COMPANY, "title": TITLE}[way]]
        changed = letter.replace(word, shape, -1 if draw.random() < 0.5 else 1)
    return with_letter(row, changed), f"{way}: {shape!r}"


def machine_tell(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """What a chat model says around a letter, or in place of it."""
    way = draw.choice(["front", "front", "end", "end", "refusal"])
    said = _slots(draw.choice(texts("plant")[f"machine_{way}"]), row)
    letter = {"front": f"{said}\n\n{row[LETTER]}", "end": f"{row[LETTER]}\n\n{said}", "refusal": said}[way]
    return with_letter(row, letter), f"{way}: {said!r}"


def mojibake(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """UTF-8 read in another encoding; straight marks are set as a word processor would set them first."""
    letter = re.sub(r"(?<=\w)'(?=\w)", "’", row[LETTER])
    if letter.isascii():
        return None
    way = draw.choice(["cp1252", "cp1252", "cp1252 twice", "latin-1", "mac_roman", "lost bytes", "one paragraph"])
    if way == "one paragraph":
        parts = letter.split("\n\n")
        at = draw.choice([place for place, part in enumerate(parts) if not part.isascii()])
        parts[at] = _misread(parts[at], "cp1252")
        changed = "\n\n".join(parts)
    elif way == "lost bytes":
        changed = letter.encode("cp1252", "replace").decode("utf-8", "replace")
    else:
        encoding, *twice = way.split(" ")
        changed = _misread(letter, encoding)
        changed = _misread(changed, encoding) if twice else changed
    strange = re.search(r"\S*[^\x00-\x7f]\S*", changed)
    return with_letter(row, changed), f"{way}: {strange[0] if strange else ''}"


def markup(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """HTML tags or entities from a web form."""
    letter = row[LETTER]
    way = draw.choice(["paragraphs", "breaks", "bold", "entities", "span", "tail", "spaces", "list"])
    if way == "list" and not any(map(_items, letter.split("\n\n"))):
        way = "paragraphs"
    start, end = draw.choice(prose(letter))
    sentence = letter[start:end]
    quoted = html.escape(letter, quote=True).replace("’", "&rsquo;").replace("–", "&ndash;").replace("£", "&pound;")
    changed = {
        "paragraphs": "\n".join(f"<p>{part}</p>" for part in letter.split("\n\n")),
        "breaks": letter.replace("\n", draw.choice(["<br>", "<br/>\n", "<br />"])),
        "bold": letter.replace(row[COMPANY], f"<b>{row[COMPANY]}</b>"),
        "entities": quoted if quoted != letter else letter.replace(" and ", " &amp; "),
        "span": f'{letter[:start]}<span style="font-size:11pt">{sentence}</span>{letter[end:]}',
        "tail": f"{letter}\n{draw.choice(['</div>', '</body></html>', '<!-- end -->', '</textarea>'])}",
        "spaces": letter.replace(", ", ",&nbsp;"),
        "list": re.sub(r"(?m)^(?:\d+[.)]|[-*•]) (.*)$", r"<li>\1</li>", letter),
    }[way]
    if changed == letter:
        return None
    signs = sorted(set(re.findall(r"<[^>]*>|&[#a-z0-9]+;", changed)))
    return with_letter(row, changed), f"{way}: {' '.join(signs[:4])}"


def personal(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """An e-mail address, a telephone number, a card or an account, all from ranges kept free for examples.

    RFC 2606 (hosts), Ofcom's numbers for drama use, 555-01xx in North America, and the card networks' test numbers.
    """
    said = texts("plant")
    first, *_, last = row[NAME].lower().encode("ascii", "ignore").decode().split()
    user = draw.choice(
        [f"{first}.{last}", f"{first[:1]}{last}{draw.randint(1, 99)}", f"{last}_{first}", f"{first}{last}"]
    )
    slots = {
        "email": f"{user}@{draw.choice(said['personal_hosts'])}",
        "phone": _phone(draw),
        "card": draw.choice(["4111 1111 1111 1111", "5555 5555 5555 4444", "4242-4242-4242-4242", "378282246310005"]),
        "iban": draw.choice(["GB82 WEST 1234 5698 7654 32", "DE89 3704 0044 0532 0130 00", "GB33BUKB20201555555555"]),
    }
    line = draw.choice(said["personal"])
    sentence = filled(line, **slots)
    held = " and ".join(name for name in slots if "{" + name + "}" in line)
    if sentence.endswith("."):
        return with_letter(row, with_sentence(row[LETTER], sentence, draw)), f"{held}: {sentence}"
    if draw.random() < 0.5:
        return with_letter(row, f"{sentence}\n\n{row[LETTER]}"), f"{held}: {sentence}"
    return with_letter(row, f"{row[LETTER]}\n{sentence}"), f"{held}: {sentence}"


def secret(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """Random characters in the shape of an access key; none of them opens anything."""
    capitals, letters = string.ascii_uppercase + string.digits, string.ascii_letters + string.digits
    way, prefix, alphabet, length = draw.choice(
        [
            ("aws", "AKIA", string.ascii_uppercase + "234567", 16),
            ("github", "gh" + "p_", letters, 36),
            ("openai", "sk" + "-", letters, 48),
            ("hugging face", "h" + "f_", string.ascii_letters, 34),
            ("google", "AI" + "za", letters + "-_", 35),
            ("slack", "xo" + "xb-", string.digits, 24),
            ("gitlab", "gl" + "pat-", letters, 20),
            ("hex", "", "0123456789abcdef", 40),
            ("jwt", "ey" + "JhbGciOiJIUzI1NiJ9.", letters, 43),
            ("serial", "", capitals, 25),
        ]
    )
    key = prefix + "".join(draw.choices(alphabet, k=length))
    if way == "jwt":
        key += "." + "".join(draw.choices(letters, k=43))
    sentence = filled(draw.choice(texts("plant")["secret"]), secret=key)
    end = draw.choice(prose(row[LETTER]))[1]
    gap = " " if sentence.endswith(".") else "\n\n"
    return with_letter(row, row[LETTER][:end] + gap + sentence + row[LETTER][end:]), f"{way}: {sentence}"


def wrong_language(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """A letter in German, Spanish or French, or one that changes the language on its way."""
    said = texts("plant")
    way = draw.choice(["german", "german", "spanish", "spanish", "french"])
    sentences = draw.sample(said[f"{way}_body"], draw.randint(3, 5))
    slots = {"skills": ", ".join(skills(row)[:2])}
    middle = filled(" ".join(sentences), **slots)
    opening, close = (_slots(draw.choice(said[f"{way}_{part}"]), row) for part in ("open", "close"))
    if draw.random() < 0.25:
        end = prose(row[LETTER])[0][1]
        return with_letter(row, f"{row[LETTER][:end]}\n\n{middle}\n\n{close}"), f"{way}: from the second paragraph on"
    return with_letter(row, f"{opening}\n\n{middle}\n\n{close}"), f"{way}: the whole letter"


def whitespace(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """Characters that nobody sees: control characters, CRLF, trailing blanks and the like."""
    letter = row[LETTER]
    way = draw.choice(["control", "crlf", "trailing", "leading", "double", "lines", "tabs", "zero width", "no-break"])
    sign, hidden = draw.choice("\x07\x0b\x0c\x1b\x08\x02"), draw.choice("\u200b\ufeff\u200e\u2060")
    spaces = [found.start() for found in re.finditer(" ", letter)]
    changed = {
        "control": _inserted(letter, sign, draw.sample(spaces, draw.randint(1, 4))),
        "crlf": letter.replace("\n", "\r\n"),
        "trailing": re.sub(r"\n+", lambda found: "   " + found[0], letter) + draw.choice(["  ", "\n\n\n", " \n"]),
        "leading": draw.choice(["\n\n", "   ", "\t"]) + letter.replace("\n\n", "\n\n    "),
        "double": _inserted(letter, "  ", draw.sample(spaces, 9)),
        "lines": letter.replace("\n\n", "\n\n\n\n\n"),
        "tabs": letter.replace(". ", ".\t"),
        "zero width": _inserted(letter, hidden, draw.sample(spaces, draw.randint(2, 6))),
        "no-break": letter.replace(" ", "\u00a0"),
    }[way]
    return with_letter(row, changed), f"{way}: {_strange(changed) or 'blanks alone'}"


# --- what the catalog is made of ---------------------------------------------------------------------------


def _slots(text: str, row: Row) -> str:
    return filled(text, title=row[TITLE], company=row[COMPANY], name=row[NAME])


def _number(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """Another number in the place of a true one, in digits or words, or a sentence with a number of its own."""
    letter, known = row[LETTER], own(row)
    mine = letter
    for foreign in (row[TITLE], *demands(row)):  # a number of the advert's is not the applicant's
        mine = mine.replace(foreign, "_" * len(foreign))
    places = [found for found in re.finditer(r"(?<![\w£])£?\d[\d,]*\b(?![.)] )", mine) if found[0] in known]
    places += re.finditer(rf"\b(?:{'|'.join(NUMBERS)})(?= years)", mine)
    if places and draw.random() < 0.65:
        place = draw.choice(places)
        if place[0].isalpha():
            free = [word for n, word in enumerate(NUMBERS, 2) if not re.search(rf"(?i)\b({n}|{word}) years", known)]
            new = draw.choice(free)
        else:
            new = _other_number(place[0], known, draw)
        return with_letter(row, letter[: place.start()] + new + letter[place.end() :]), f"{place[0]} -> {new}"
    other = [str(number) for number in range(6, 60) if not re.search(rf"\b{number}\b", known)]
    sentence = filled(draw.choice(texts("plant")["numbers"]), n=draw.choice(other))
    return with_letter(row, with_sentence(letter, sentence, draw)), f"added {sentence!r}"


def _other_number(said: str, known: str, draw: random.Random) -> str:
    """A number of the same form that the fields do not state; a year stays a year."""
    digits = int(re.sub(r"\D", "", said))
    if 1950 < digits < 2100:
        near = [digits + step for step in (-7, -5, -4, -3, -2, -1, 1, 2)]
    else:
        unit = 1000 if digits % 1000 == 0 else 1
        near = [unit * (round(digits / unit * factor) + 1) for factor in (0.4, 0.6, 1.3, 1.5, 2, 3)]
    shape: Callable[[int], str] = lambda n: f"£{n:,}" if said.startswith("£") else f"{n:,}" if "," in said else str(n)  # noqa: E731
    return draw.choice([text for text in map(shape, near) if not re.search(rf"{re.escape(text)}\b", known)])


def _employer(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """Another employer in the place of a true one, or one more."""
    said, letter = texts("plant"), row[LETTER]
    new = draw.choice([*said["employer_names"], *(o[COMPANY] for o in rows if o[COMPANY] not in own(row) + letter)])
    mine = [name for name in re.findall(r"\bat ((?:[A-Z]\w+ ?)+)(?<! )", own(row)) if name in letter]
    if mine and draw.random() < 0.5:
        old = draw.choice(mine)
        return with_letter(row, letter.replace(old, new)), f"{old} -> {new}"
    sentence = filled(draw.choice(said["employers"]), employer=new)
    return with_letter(row, with_sentence(letter, sentence, draw)), f"added {sentence!r}"


def _degree(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """A higher degree in the place of the true one, a degree in something else, or one more."""
    said, letter = texts("plant"), row[LETTER].replace("’s degree", "'s degree")
    mine = [degree for degree in re.split(r"[;,] ", row["Qualifications"]) if degree in letter]
    higher = {
        "Bachelor's": "Master's",
        "Diploma": "Bachelor's degree",
        "Certificate": "Diploma",
        "Master's": "Doctor's",
    }
    if mine and draw.random() < 0.5:
        old, subject = draw.choice(mine), draw.choice(said["subjects"])
        word = old.split()[0]
        new = old.replace(word, higher[word]) if word in higher else f"Bachelor's degree in {subject}"
        if new in own(row) or (word in higher and draw.random() < 0.4):
            new = f"{old.split(' in ')[0]} in {subject}"
        article = rf"\b(?:an?|An?) {re.escape(old)}"
        changed = re.sub(article, lambda found: capital(an(new)) if found[0][0] == "A" else an(new), letter)
        changed = changed.replace(old, new)
        if "’" in row[LETTER]:
            changed = changed.replace("'", "’")
        return with_letter(row, changed), f"{old} -> {new}"
    sentence = filled(draw.choice(said["degrees"]), subject=draw.choice(said["subjects"]))
    return with_letter(row, with_sentence(row[LETTER], sentence, draw)), f"added {sentence!r}"


def _skill(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """A skill of another trade as one more, or in the place of a true one."""
    letter, known = row[LETTER], (own(row) + row["Preferred Qualifications"] + row[LETTER]).casefold()
    foreign = sorted({skill for other in rows for skill in skills(other) if skill.casefold() not in known})
    if not foreign:
        return None
    new, mine = draw.choice(foreign), [skill for skill in skills(row) if skill in letter]
    if mine and draw.random() < 0.4:
        old = draw.choice(mine)
        return with_letter(row, letter.replace(old, new)), f"{old} -> {new}"
    sentence = filled(draw.choice(texts("plant")["skills"]), skill=new, Skill=capital(new))
    return with_letter(row, with_sentence(letter, sentence, draw)), f"added {sentence!r}"


def _demand(row: Row, draw: random.Random, rows: Sequence[Row]) -> Damaged:
    """What only the advert names, claimed as the applicant's own."""
    known = (own(row) + row[LETTER]).casefold()
    unmet = [demand for demand in demands(row) if demand.casefold() not in known]
    if not unmet:
        return None
    sentence = filled(draw.choice(texts("plant")["demands"]), demand=as_own(draw.choice(unmet)))
    return with_letter(row, with_sentence(row[LETTER], sentence, draw)), f"added {sentence!r}"


def _items(paragraph: str) -> list[str]:
    return [line for line in paragraph.split("\n") if ITEM.match(line)]


def _misread(text: str, encoding: str) -> str:
    """UTF-8 bytes read as `encoding`; a byte that it does not know becomes the replacement character."""
    return text.encode("utf-8").decode(encoding, "replace")


def _strange(text: str) -> str:
    """The characters that are no plain blank and cannot be seen, once each, as they are written in code."""
    return " ".join(sorted({ascii(sign)[1:-1] for sign in text if not sign.isprintable() and sign != "\n"}))


def _inserted(text: str, what: str, places: Sequence[int]) -> str:
    for place in sorted(places, reverse=True):
        text = text[:place] + what + text[place:]
    return text


def _phone(draw: random.Random) -> str:
    four, three, two = f"{draw.randint(0, 999):03d}", f"{draw.randint(0, 999):03d}", f"{draw.randint(0, 99):02d}"
    return draw.choice(
        [f"020 7946 0{four}", f"+44 7700 900{three}", f"07700 900{three}", f"(212) 555-01{two}", f"+1 415-555-01{two}"]
    )
