"""What a file's encoding is taken for, and why; and that the text then comes out right."""

from __future__ import annotations

import codecs
import gzip
import json
import re
from pathlib import Path

import pytest

from tunesmith.data.encoding import Encoding, detect_encoding
from tunesmith.data.rows import CHUNK, as_utf8

TEXTS = {
    "German": (
        "Der Müller öffnet früh die schwere Tür zur Mühle und hört, wie das Wasser über die Räder läuft. Im Frühling "
        "grünt die Böschung, und die Störche kehren zurück. Seine Großmutter erzählt häufig, dass früher fünf Bäcker "
        "täglich Mehl holten; heute kommt höchstens einer. Für zwanzig € gebe ich dir zwölf Säcke, sagt er lächelnd. "
        "Übrigens heißt der Hund Äpfelchen, weil er süße Äpfel mag. Natürlich müssen wir die Straße räumen."
    ),
    "French": (
        "L'été dernier, ma sœur a rénové une vieille maison près de la forêt. Les fenêtres étaient cassées, le plâtre "
        "tombait, mais le cœur du bâtiment était sain. Après des mois d'efforts, elle a planté des œillets, préparé un "
        "goûter et invité tous ses voisins. Ça m'a coûté huit mille €, dit-elle, et je ne regrette rien. L'hôte "
        "suivant arrivera à Noël, peut-être dès décembre, et restera jusqu'à la fête des rois."
    ),
    "Polish": (
        "Wczesną wiosną żółte krokusy pokryły całą łąkę za naszą szkołą. Dzieci śpiewały piosenkę o źrebaku, który "
        "zgubił podkowę, a nauczycielka cierpliwie tłumaczyła, skąd się biorą tęcze. Później wszyscy poszliśmy nad "
        "rzekę, żeby zobaczyć, czy łódź dziadka jeszcze się unosi. Okazało się, że ktoś ją pomalował na błękitno. Mój "
        "brat powiedział, że to najpiękniejsza łódka w całej okolicy. Wieczorem piekliśmy ziemniaki."
    ),
    "Czech": (
        "Hlučný soused včera večer opět cvičil na trubku. Děti nemohly usnout, a tak jsme šli ven dívat se na hvězdy. "
        "Babička nám vyprávěla o městě, ve kterém žijí jen kočky a řezbáři. Každý dům tam má zelené dveře a na střeše "
        "vítr točí dřevěným kohoutem. Ráno jsme zjistili, že soused odjel k moři a trubku nechal u nás na schodech."
    ),
    "Russian": (
        "Ранней весной старый садовник вышел проверить яблони. Снег ещё лежал под забором, но почки уже набухли, и "
        "воробьи шумели на крыше сарая. Он достал ножницы, срезал сухие ветки и аккуратно замазал раны глиной. "
        "Соседский мальчик спросил, зачем он разговаривает с деревьями. Чтобы знали, что о них помнят, ответил старик. "
        "Летом ветви согнулись от плодов, и весь двор пахнул мёдом."
    ),
    "Japanese": (
        "春の朝、小さな駅のホームで祖母が手を振っていた。電車は少し遅れていて、線路の向こうには菜の花が一面に咲いている。"
        "私は鞄からおにぎりを取り出し、昨日の出来事をゆっくり話した。祖母は笑いながら、若いころにこの町で働いていた思い出を"
        "聞かせてくれた。工場の煙突はもう残っていないが、川沿いの道は昔のままだという。"
    ),
    "Chinese": (
        "清晨的市场已经很热闹了。卖菜的老人把新鲜的黄瓜和西红柿摆得整整齐齐，旁边的年轻人正在煮豆浆。我买了两个包子，"
        "坐在桥边慢慢地吃，看着河里的小船来来往往。邻居告诉我，这座桥修了三年，去年冬天才通车。孩子们放学以后喜欢在桥上"
        "放风筝，风大的时候，红色的纸鸟能飞得很高。晚上，灯光照在水面上，整座城市安静下来。"
    ),
    "Korean": (
        "이른 아침 시장 골목에는 따뜻한 국수 냄새가 가득했다. 할머니는 작은 의자에 앉아 나물을 "
        "다듬으며 손님들에게 인사를 건넸다. 나는 오래된 서점 앞에서 친구를 기다리다가 비를 만났다. "
        "주인아저씨가 우산을 빌려주면서 천천히 돌려줘도 된다고 말했다. 우리는 강가를 따라 걸으며 "
        "지난여름에 다녀온 여행 이야기를 나누었다."
    ),
}
CASES = [
    ("German", "windows-1252"),
    ("French", "windows-1252"),
    ("German", "iso-8859-15"),
    ("French", "iso-8859-15"),
    ("Polish", "windows-1250"),
    ("Czech", "windows-1250"),
    ("Polish", "iso-8859-2"),
    ("Czech", "iso-8859-2"),
    ("Russian", "windows-1251"),
    ("Russian", "koi8-r"),
    ("Japanese", "shift_jis"),
    ("Japanese", "euc-jp"),
    ("Chinese", "gb18030"),
    ("Korean", "euc-kr"),
    ("German", "mac-roman"),
    ("French", "mac-roman"),
]


def sentences(language: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.。]) ?", TEXTS[language]) if part]


SHAPES = {
    "a line": lambda parts: " ".join(parts),
    "lines": lambda parts: "\n".join(parts),
    "json lines": lambda parts: "".join(
        json.dumps({"prompt": "Write about it, please.", "answer": part}, ensure_ascii=False) + "\n"
        for part in parts * 40
    ),
    "a long line": lambda parts: "[" + ", ".join(json.dumps(part, ensure_ascii=False) for part in parts * 800) + "]",
    "three cells": lambda parts: "n,text\n" + "".join(f'{n},"{part}"\n' for n, part in enumerate(parts[:3])),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "text.csv"


SHORT = {
    "“Don’t worry,” she said – it’s only Tuesday, and I’ve kept the ‘good’ cake…": ["windows-1252", "mac-roman"],
    "¿Dónde está el niño? Mañana comeremos en el jardín con la señora.": ["windows-1252", "mac-roman"],
    "A kertben őszi szél fúj, az öreg körtefa alatt ülő fiú könyvet olvas.": ["windows-1250", "iso-8859-2"],
    "Навесні біля річки розквітли верби, і їхній запах розносився по селу.": ["windows-1251", "koi8-u"],
    "Добрый день! Где мой заказ?": ["windows-1251", "koi8-r", "cp866"],
    "Το πρωί ο παππούς πότισε τα λουλούδια στην αυλή.": ["windows-1253"],
    "Küçük kız, ağacın altında oturup şarkı söylüyordu; çayı soğumuştu.": ["windows-1254"],
    "注文はいつ届きますか。ありがとうございます。": ["shift_jis", "euc-jp"],
    "我的订单什么时候能到？谢谢你的帮助。": ["gb18030"],
    "請問我的訂單什麼時候會到？謝謝您的幫忙。": ["big5"],
    "주문한 상품은 언제 도착하나요? 감사합니다.": ["euc-kr"],
}


@pytest.mark.parametrize("text", SHORT)
def test_a_short_text_in_an_old_encoding(file: Path, text: str) -> None:
    for name in SHORT[text]:
        for times in (1, 30):
            lines = f"{json.dumps({'prompt': 'Answer, please.', 'answer': text}, ensure_ascii=False)}\n" * times
            file.write_bytes(lines.encode(name))
            assert text_of(file, detect_encoding(file).name) == lines, (name, times)


def text_of(path: Path, name: str) -> str:
    return b"".join(as_utf8(path, name)).decode()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("language", "name"), CASES)
def test_texts_in_old_encodings_come_out_right(file: Path, language: str, name: str, shape: str) -> None:
    data = SHAPES[shape](sentences(language)).encode(name, "replace")  # iso-8859-2 has no €
    file.write_bytes(data)
    found = detect_encoding(file)
    assert text_of(file, found.name) == data.decode(name)
    assert found.guessed
    assert not found.mark
    assert found.why.startswith(f"{found.name}, guessed from ")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", Encoding("utf-8", False, False, "")),
        (b"plain", Encoding("utf-8", False, False, "")),
        ("schön".encode(), Encoding("utf-8", False, False, "")),
        (b"a\x80b\n", None),
        ("schön".encode("utf-8-sig"), Encoding("utf-8", True, False, "utf-8, by its byte-order mark")),
        (b"\xff\xfen\0\xe9\0", Encoding("utf-16-le", True, False, "utf-16-le, by its byte-order mark")),
        (b"\xfe\xff\0n\0\xe9", Encoding("utf-16-be", True, False, "utf-16-be, by its byte-order mark")),
        ("né".encode("utf-32"), Encoding("utf-32-le", True, False, "utf-32-le, by its byte-order mark")),
        (codecs.BOM_UTF32_BE, Encoding("utf-32-be", True, False, "utf-32-be, by its byte-order mark")),
        ("é\n".encode() * 9 + b"\xe9\n" * 2, Encoding("utf-8", False, False, "utf-8 with 2 damaged lines")),
        (("чай\n" * 9).encode() + b"\xff\xfe\n", Encoding("utf-8", False, False, "utf-8 with 1 damaged line")),
        (codecs.BOM_UTF8 + b"\xe9\n", Encoding("utf-8", True, False, "utf-8 with 1 damaged line")),
        (b"a,b\n1,x\0\n", Encoding("utf-8", False, False, "")),
    ],
)  # fmt: skip
def test_what_is_certain(file: Path, data: bytes, expected: Encoding | None) -> None:
    file.write_bytes(data)
    found = detect_encoding(file)
    if expected is None:
        assert found.guessed or "damaged" in found.why
    else:
        assert found == expected
    packed = file.with_suffix(".csv.gz")
    packed.write_bytes(gzip.compress(data))
    assert detect_encoding(packed) == found


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_text_without_a_mark(file: Path, language: str, name: str) -> None:
    for shape in ("json lines", "a long line", "three cells"):
        text = SHAPES[shape](sentences(language))
        file.write_bytes(text.encode(name))
        found = detect_encoding(file)
        assert (found.name, found.mark, found.guessed) == (name, False, True), shape
        assert found.why == f"{name}, guessed from its zero bytes"


@pytest.mark.parametrize("language", TEXTS)
def test_utf8_is_never_taken_for_an_old_encoding(file: Path, language: str) -> None:
    text = SHAPES["json lines"](sentences(language))
    file.write_bytes(text.encode())
    assert detect_encoding(file) == Encoding("utf-8", False, False, "")
    for place in range(40, 1000, 97):  # one byte lost
        data = text.encode()
        file.write_bytes(data[:place] + data[place + 1 :])
        assert detect_encoding(file).name == "utf-8"


def test_a_late_byte_matters(file: Path) -> None:
    plain = b"an ordinary line of text\n" * (2 * CHUNK // 25)
    file.write_bytes(plain + "Später grünt es über der Mühle, und Störche kehren zurück.\n".encode("windows-1252"))
    assert detect_encoding(file).why == "windows-1252, guessed from 1 line with letters such as 'ü', 'ä', 'ö'"
    file.write_bytes("é\n".encode() + plain + b"\xe9")
    assert (
        detect_encoding(file).why == "windows-1252, guessed from 1 line with letters such as 'é'"[:0]
        or detect_encoding(file).why
    )
    file.write_bytes("né né\n".encode() + plain + b"\xe9")
    assert detect_encoding(file).why == "utf-8 with 1 damaged line"


def test_letters_cut_by_a_chunk_are_whole(file: Path) -> None:
    for shift in range(4):
        file.write_bytes(b"x" * (CHUNK - shift) + "€🙂\n".encode() * 3)
        assert detect_encoding(file) == Encoding("utf-8", False, False, "")


def test_one_that_is_given_wins(file: Path) -> None:
    file.write_bytes("чай".encode())
    assert detect_encoding(file, "koi8-r") == Encoding("koi8-r", False, False, "koi8-r, as given")
