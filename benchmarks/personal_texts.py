"""Texts with personal data whose place is known, made by seed, and texts that only look as if they held some.

The values are random and pass their kind's checks; they stand in sentences of every sort and in several spellings.
"""

from __future__ import annotations

import ipaddress
import random
import re
import string
from collections.abc import Callable, Iterator

Marked = tuple[int, int, str]  # start, end (exclusive), kind
FRAMES = (
    "Please send the signed form to {email} before Friday.",
    "You can reach {name} at {phone} between nine and five.",
    "My new address for mail is {email}; the old one bounces.",
    "Dear support, the charge on card {card} is not mine.",
    "Transfer the deposit to {iban} and write the flat's name in the reference.",
    "The applicant's social security number is {ssn}.",
    "Blocked login from {ip} after four wrong passwords.",
    "The manual lies at {url}, chapter two.",
    "{name} wrote: 'call me on {phone}, not by mail'.",
    "Contact: {name}, {email}, {phone}",
    "From: {email}\nTo: {email}\nSubject: the leak in the cellar",
    "{phone} is the number of the night desk.",
    "If nobody answers on {phone}, try {phone}.",
    "Card holder {name}, number {card}, valid through 11/29.",
    "I paid with {card} yesterday and was billed twice.",
    "Bank details\nIBAN: {iban}\nHolder: {name}",
    "The refund goes to {iban}.",
    "SSN: {ssn}\nDate of birth: 14 March 1981",
    "The server {ip} answers, but {ip} does not.",
    "ping {ip} -c 4",
    "See {url} for the price list (in German).",
    "It is all written down here: {url}",
    "[the map]({url}) shows the way to the mill",
    "Ms. {name} will open the gate for the plumber.",
    "{name}'s invoice was paid on 3 May.",
    "We met {name} and {name} at the boat shed.",
    "Reply to <{email}>, please.",
    "e-mail:{email}",
    "Tel. {phone}, Fax {phone}",
    "phone={phone}&lang=en",
    "Text {phone} with the word TIDE.",
    "WhatsApp: {phone}",
    "Mobile {phone} (evenings only)",
    "My mother, {name}, has no e-mail; ring her on {phone}.",
    "The tax form asks for your SSN ({ssn}), nothing else.",
    "Employee {name}, social security number {ssn}, starts in the kiln room.",
    "Visa {card} was declined twice.",
    "Which of my cards ends so? {card} or {card}?",
    "Her account is {iban}, his is {iban}.",
    "Wire it: {iban}, due on the 30th.",
    "Host {ip} port 8080 refused the connection.",
    "Allow {ip}/32 in the firewall, then restart.",
    "GET / from {ip} at 10:22:31, status 200",
    "Does {url} load for you? It times out here.",
    "Source: {url}. Accessed in June.",
    "The ferry booking of {name} was sent to {email}.",
    "Hi, {name} here. Could you move my lesson to Tuesday?",
    "Thanks,\n{name}\n{phone}\n{email}",
    "Signed: {name}, keeper of the light",
    "According to Dr. {name}, the ankle needs six weeks.",
    "{{'user': '{email}', 'ip': '{ip}'}}",
    "user,mail,phone\n{name},{email},{phone}",
    "Emergency contact: {name} ({phone})",
    "The landlord ({email}) wants the rent on {iban}.",
    "For a quick answer dial {phone} and press 2.",
    "Booked by {name} with {card}; receipt to {email}.",
    "Has anyone seen {name} since the market closed?",
    "{email} and {email} are the same person.",
    "I, {name}, agree that {name} may collect the parcel.",
    "Our new site is {url} and the old one forwards there.",
)
LOOK_ALIKES = (
    "Order {n8} was packed on 2024-05-17 and left the yard at 10:15.",
    "Your order number is {n3}-{n7}-{n7}.",
    "Invoice {n4}-{n4}-{n4} is open since 03/11/2023.",
    "The meeting moved from 12.04.2025 to 19.04.2025.",
    "Upgrade from version {d2}.{d2}.{d3}.{d1} to {d2}.{d2}.{d1}.",
    "pip install tern=={d1}.{d2}.{d2}",
    "The book is ISBN {isbn13}, the old edition ISBN {isbn10}.",
    "ISBN: {isbn13d}",
    "It costs $ {n3},{n3}.{d2} or {n3}.{n3},{d2} EUR with tax.",
    "The price fell from 1 {n3} {n3} to {n3} {n3} crowns.",
    "The mill stands at {lat}, {lon}.",
    "GPS {lat} N {lon} E, altitude {n3} m",
    "Tracking number 1Z{n4}W{n4}{n4}{n2} says delivered.",
    "Parcel {n8}{n4} is with the neighbours.",
    "A wrong card number: {badcard}.",
    "The test IBAN {badiban} must be refused.",
    "Sort the list {d1} {d2} {d3} {d2} {d1} {d2} by size.",
    "In {y}-{y} the town had {n3},{n3} inhabitants.",
    "Pi is 3.14159265358979 and e is 2.718281828459045.",
    "The score was {d2}-{d2}, {d2}-{d2}, {d2}-{d2} after three hours.",
    "At 12:34:56 the clock stopped, at 12:35:10 it went on.",
    "std::vector<int> and a::b::c are names in C++.",
    "MAC 00:1B:{h2}:{h2}:{h2}:{h2} belongs to the printer.",
    "Follow @ternmill and @quillboats for news.",
    "The commit is {hex}.",
    "Part no. {n4}-{n3}-{n4}, two pieces.",
    "Case {n3}-{n2}-{n4}B was closed.",
    "Population: {n3} {n3} {n3}",
    "Open main.py, then e.g. utils.test.js and readme.md.",
    "DOI 10.{n4}/s{n5}-0{n2}-{n5}-{d1}",
    "Room {n4}, floor {d2}, between 0900 and 1730.",
    "The serial is SN{n8}{n4}.",
    "The ferry from Bergen to Turku sails in April, weather permitting.",
    "Tern & Daughters Ltd. of Bristol sells rope by the metre.",
    "The Harbour Prize went to a film called Low Tide in Lisbon.",
    "On Monday the Ministry of Fisheries closed the Baltic for cod.",
)
GIVEN = (
    "Mira", "Tobias", "Aisha", "Jonas", "Priya", "Lukas", "Chiara", "Mateo", "Ingrid", "Kwame", "Yuki", "Samira",
    "Declan", "Fatima", "Henrik", "Olga", "Rafael", "Nadia", "Soren", "Leila", "Oscar", "Beatriz", "Tomasz", "Amara",
    "Felix", "Hannah", "Dmitri", "Keiko", "Ruben", "Zofia", "Walter", "Grace", "Imran", "Elodie", "Marcus", "Joan",
)  # fmt: skip
FAMILY = (
    "Quillby", "Ternhill", "Okafor", "Lindqvist", "Moreau", "Castellan", "Haverford", "Novak", "Brandt", "Ashdown",
    "Petrov", "Silvano", "Takeda", "Varma", "Eriksen", "Delacroix", "Kowal", "Mbeki", "Farrow", "Hollis", "Grantham",
    "Reyes", "Ostrov", "Bianchi", "Falk", "Underhill", "Nakano", "Whitlock", "Marsh",
)  # fmt: skip
HOSTS = (
    "tern.example",
    "quill-boats.example",
    "mail.mill.example",
    "example.org",
    "kiln.example.net",
    "shed.co.example",
)
PATHS = (
    "",
    "/",
    "/map",
    "/a/b_c.html",
    "/find?q=tide&page=2",
    "/docs/v2#start",
    "/~mira/notes",
    "/x%20y.pdf",
    ":8443/in",
)
IBAN_PARTS = {  # country -> its account's shape in the SWIFT registry: d a digit, a a letter, c either
    "DE": "d" * 18, "GB": "aaaa" + "d" * 14, "FR": "d" * 10 + "c" * 11 + "dd", "NL": "aaaa" + "d" * 10, "ES": "d" * 20,
    "IT": "a" + "d" * 10 + "c" * 12, "CH": "d" * 5 + "c" * 12, "AT": "d" * 16, "NO": "d" * 11, "PL": "d" * 24,
    "MT": "aaaa" + "d" * 5 + "c" * 18, "SE": "d" * 20,
}  # fmt: skip
ISSUERS = (
    ("4", 16),
    ("51", 16),
    ("55", 16),
    ("2221", 16),
    ("34", 15),
    ("37", 15),
    ("6011", 16),
    ("3528", 16),
    ("36", 14),
)
PHONES = (  # N is 2 to 9, d any digit: the countries' own ways of writing
    *("Ndd-Ndd-dddd", "(Ndd) Ndd-dddd", "Ndd.Ndd.dddd", "+1 Ndd Ndd dddd", "+1-Ndd-Ndd-dddd", "1-Ndd-Ndd-dddd"),
    *("Ndd-Ndd-ddddxddd", "+1 (Ndd) Ndd-dddd ext. dd", "+44 20 7ddd dddd", "020 7ddd dddd", "07ddd dddddd"),
    *("+49 30 Nddddddd", "030 Nddddddd", "+33 N dd dd dd dd", "0N dd dd dd dd", "+61 2 Nddd dddd", "+91 9dddd ddddd"),
    *(
        "+81-3-Nddd-dddd",
        "+55 11 9dddd-dddd",
        "+4930Nddddddd",
        "0041 44 Ndd dd dd",
        "+46 70-Ndd dd dd",
        "+39 06 Nddd dddd",
    ),
)


def labeled(count: int, seed: int = 0) -> Iterator[tuple[str, list[Marked]]]:
    """`count` texts, the frames in turn, each with the spans of its values."""
    draw = random.Random(seed)
    for number in range(count):
        yield filled(FRAMES[number % len(FRAMES)], draw)


def look_alikes(count: int, seed: int = 0) -> Iterator[str]:
    """`count` texts without personal data."""
    draw = random.Random(seed)
    for number in range(count):
        yield re.sub(r"\{(\w+)\}", lambda slot: plain(slot[1], draw), LOOK_ALIKES[number % len(LOOK_ALIKES)])


def filled(frame: str, draw: random.Random) -> tuple[str, list[Marked]]:
    """The frame with a value in every slot, and where the values stand."""
    text, marked = "", []
    for before, kind, _, _ in string.Formatter().parse(frame):
        text += before
        if kind:
            value = VALUES[kind](draw)
            marked.append((len(text), len(text) + len(value), kind))
            text += value
    return text, marked


def digits(draw: random.Random, count: int) -> str:
    """`count` digits, the first not 0."""
    return str(draw.randint(1, 9)) + "".join(draw.choices("0123456789", k=count - 1))


def shaped(shape: str, draw: random.Random) -> str:
    """`shape` with its letters N, d, a and c drawn."""
    sets = {
        "N": "23456789",
        "d": string.digits,
        "a": string.ascii_uppercase,
        "c": string.digits + string.ascii_uppercase,
    }
    return "".join(draw.choice(sets[each]) for each in shape)


def phone(draw: random.Random) -> str:
    """A number in one of PHONES' ways; what is no N or d there stays."""
    return re.sub("[Nd]", lambda each: shaped(each[0], draw), draw.choice(PHONES).replace("ext", "EXT")).replace(
        "EXT", "ext"
    )


def card(draw: random.Random) -> str:
    """A number of one of ISSUERS that passes Luhn's check, plain or grouped as printed."""
    prefix, length = draw.choice(ISSUERS)
    body = prefix + "".join(draw.choices("0123456789", k=length - len(prefix) - 1))
    number = body + next(last for last in string.digits if _luhn(body + last))
    between = draw.choice(("", " ", "-"))
    if length == 16:
        return between.join(number[at : at + 4] for at in range(0, 16, 4))
    return between.join((number[:4], number[4:10], number[10:]))


def _luhn(number: str) -> bool:
    doubled = [int(each) * (1 + at % 2) for at, each in enumerate(reversed(number))]
    return sum(each - 9 * (each > 9) for each in doubled) % 10 == 0


def iban(draw: random.Random) -> str:
    """An account number with its country's shape and ISO 13616's check digits, plain or in fours."""
    country = draw.choice(sorted(IBAN_PARTS))
    account = shaped(IBAN_PARTS[country], draw)
    rest = int("".join(str(int(each, 36)) for each in f"{account}{country}00")) % 97
    number = f"{country}{98 - rest:02d}{account}"
    return number if draw.random() < 0.5 else " ".join(number[at : at + 4] for at in range(0, len(number), 4))


def ssn(draw: random.Random) -> str:
    """An issued area, group and serial, with dashes or blanks."""
    area = draw.choice([each for each in range(1, 900) if each != 666])
    return draw.choice("- ").join((f"{area:03d}", f"{draw.randint(1, 99):02d}", f"{draw.randint(1, 9999):04d}"))


def ip(draw: random.Random) -> str:
    """An IPv4 address, every third time an IPv6 one, short or written out."""
    if draw.random() < 2 / 3:
        first = draw.choice([each for each in range(1, 224) if each != 127])
        return ".".join(map(str, (first, draw.randint(0, 255), draw.randint(0, 255), draw.randint(1, 254))))
    address = ipaddress.IPv6Address((0x20010DB8 << 96) + draw.getrandbits(draw.choice((16, 48, 90))))
    return draw.choice((address.compressed, address.exploded, address.compressed.upper()))


def email(draw: random.Random) -> str:
    """An address made of a name, at a host that nobody owns."""
    given, family = draw.choice(GIVEN), draw.choice(FAMILY)
    local = draw.choice(("{g}.{f}", "{g}", "{g}_{f}{n}", "{i}{f}", "{g}+shop", "{f}-{g}", "{g}{n}")).format(
        g=given, f=family, i=given[0], n=draw.randint(2, 99)
    )
    return f"{local if draw.random() < 0.2 else local.lower()}@{draw.choice(HOSTS)}"


def url(draw: random.Random) -> str:
    """An address of the web or of a file server."""
    start = draw.choice(("https://", "https://www.", "http://", "www.", "ftp://"))
    return start + draw.choice(HOSTS) + draw.choice(PATHS)


def name(draw: random.Random) -> str:
    """A given and a family name, at times one of both or with a middle initial."""
    given, family = draw.choice(GIVEN), draw.choice(FAMILY)
    middle = draw.choice(string.ascii_uppercase)
    return draw.choices((f"{given} {family}", given, f"{given} {middle}. {family}"), weights=(7, 2, 1))[0]


VALUES: dict[str, Callable[[random.Random], str]] = {
    each.__name__: each for each in (email, phone, card, iban, ssn, ip, url, name)
}


def plain(slot: str, draw: random.Random) -> str:
    """What stands in a slot of LOOK_ALIKES: n8 is eight digits, d2 a number below 100, h2 two hexadecimal digits."""
    if re.fullmatch(r"n\d", slot):
        return digits(draw, int(slot[1]))
    if re.fullmatch(r"d\d", slot):
        return str(draw.randrange(10 ** int(slot[1])))
    return {
        "y": lambda: str(draw.randint(1500, 2024)),
        "h2": lambda: f"{draw.randrange(256):02X}",
        "hex": lambda: f"{draw.getrandbits(160):040x}",
        "lat": lambda: f"{draw.uniform(-90, 90):.6f}",
        "lon": lambda: f"{draw.uniform(-180, 180):.6f}",
        "isbn10": lambda: f"{digits(draw, 9)}X",
        "isbn13": lambda: f"978{digits(draw, 10)}",
        "isbn13d": lambda: f"978-{draw.randrange(10)}-{digits(draw, 4)}-{digits(draw, 4)}-{draw.randrange(10)}",
        "badcard": lambda: _wrong(card(draw)),
        "badiban": lambda: _wrong(iban(draw)),
    }[slot]()


def _wrong(value: str) -> str:
    """`value` with another last letter or digit: both checks see it."""
    last = value[-1]
    return value[:-1] + (str((int(last) + 1) % 10) if last.isdigit() else chr(65 + (ord(last) - 64) % 26))
