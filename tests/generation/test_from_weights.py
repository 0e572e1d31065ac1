"""Replies of a tiny model, compared with a slow decoder in this file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from greedy import PROMPTS
from tiny import make_tokenizer
from tunesmith.generation.from_weights import WeightsModel
from tunesmith.generation.text_model import Reply
from tunesmith.models.build import Model, add_adapter, load_model
from tunesmith.models.weights import fetch_weights
from tunesmith.prompt.template import Template, load_template, load_tokenizer
from tunesmith.prompt.tokens import encode_prompt, special_ids

WORDS = 12


def loaded(folder: Path) -> Model:
    return load_model(fetch_weights(str(folder)), bits=4, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def template(tiny: Callable[..., Path]) -> Template:
    folder = tiny("llama")
    return load_template(load_tokenizer(folder), "model", folder)


@pytest.fixture(scope="module")
def plain(tiny: Callable[..., Path]) -> Model:
    """The base model, never given an adapter."""
    return loaded(tiny("llama"))


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Path]) -> Model:
    """The same with an adapter that changes what is said."""
    loaded_model = loaded(tiny("llama"))
    add_adapter(loaded_model, rank=4, alpha=8, layers="all", dropout=0.5, seed=1)
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in loaded_model.lora.values():
            layer.lora_B.normal_(std=0.3, generator=source)
    return loaded_model


def slowly(model: Model, ids: list[int], stops: list[int], limit: int = WORDS) -> tuple[list[int], bool]:
    """Greedy decoding without cache, padding or company."""
    output: list[int] = []
    model.network.eval()
    with torch.inference_mode():
        while len(output) < limit:
            logits = model.network(input_ids=torch.tensor([ids + output]), use_cache=False).logits
            token = int(logits[0, -1].argmax())
            if token in stops:
                return output, True
            output.append(token)
    return output, False


def expected(model: Model, template: Template, stops: list[int]) -> list[Reply]:
    result = [slowly(model, encode_prompt(prompt, template), stops) for prompt in PROMPTS]
    return [
        Reply(template.tokenizer.decode(ids, skip_special_tokens=True).strip(), end, len(ids)) for ids, end in result
    ]


def replies(text: WeightsModel, batch: int) -> list[Reply]:
    return [reply for _, reply in sorted(text.replies(PROMPTS, max_new_tokens=WORDS, batch=batch))]


def joined(text: WeightsModel, limit: int = WORDS) -> list[str]:
    return ["".join(text.stream(prompt, max_new_tokens=limit)) for prompt in PROMPTS]


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_replies_side_by_side_are_those_of_a_slow_decoder(model: Model, template: Template, batch: int) -> None:
    text = WeightsModel(model, template, tuned=True)
    result = replies(text, batch)
    assert result == expected(model, template, text.stops)
    assert len({reply.text for reply in result}) >= 3  # the prompts matter


def test_places_are_given_with_the_shortest_prompt_first(model: Model, template: Template) -> None:
    text = WeightsModel(model, template, tuned=True)
    assert [place for place, _ in text.replies(PROMPTS, max_new_tokens=1, batch=2)] == [4, 1, 3, 0, 2]
    assert list(text.replies([], max_new_tokens=1, batch=2)) == []


@pytest.mark.parametrize("tuned", [True, False])
def test_a_stream_joined_is_the_reply(model: Model, template: Template, tuned: bool) -> None:
    text = WeightsModel(model, template, tuned=tuned)
    assert [whole.strip() for whole in joined(text)] == [reply.text for reply in replies(text, 16)]


def test_with_the_adapter_off_the_base_answers(model: Model, plain: Model, template: Template) -> None:
    base = replies(WeightsModel(plain, template, tuned=False), 2)
    text = WeightsModel(model, template, tuned=False)
    assert replies(text, 2) == base == expected(plain, template, text.stops)
    assert joined(text) == joined(WeightsModel(plain, template, tuned=True))
    assert replies(WeightsModel(model, template, tuned=True), 2) != base
    assert all(layer.enabled for layer in model.lora.values())


def test_a_stop_token_ends_a_reply_and_is_not_part_of_it(model: Model, template: Template) -> None:
    text = WeightsModel(model, template, tuned=True)
    free, _ = slowly(model, encode_prompt(PROMPTS[0], template), [])
    place = next(n for n in range(2, WORDS) if free[n] not in free[:n])
    text.stops = [free[place]]
    result = replies(text, 16)
    assert result == expected(model, template, text.stops)
    assert result[0] == Reply(template.tokenizer.decode(free[:place]).strip(), True, place)
    assert {reply.stopped for reply in result} == {True, False}  # some go on beside those that ended
    assert [whole.strip() for whole in joined(text)] == [reply.text for reply in result]


def test_a_text_that_ends_replies_is_cut_off_and_kept_apart(model: Model, template: Template) -> None:
    free = replies(WeightsModel(model, template, tuned=True), 16)
    long = max(free, key=lambda reply: len(reply.text))
    stop = long.text[len(long.text) // 2 :][:3]
    text = WeightsModel(model, template, tuned=True, stop=[stop, "never said"])
    result = replies(text, 16)
    for plain, ended in zip(free, result, strict=True):
        if stop not in plain.text:
            assert ended == plain
            continue
        before = plain.text[: plain.text.index(stop)]
        assert ended.text == before.strip() and ended.cut.startswith(stop) and not ended.stopped
        assert ended.tokens <= plain.tokens
    assert any(reply.cut for reply in result)
    assert [whole.strip() for whole in joined(text)] == [reply.text for reply in result]


def test_a_reply_of_nothing_but_the_stop_token(model: Model, template: Template) -> None:
    text = WeightsModel(model, template, tuned=True)
    text.stops = list({slowly(model, encode_prompt(prompt, template), [], limit=1)[0][0] for prompt in PROMPTS})
    assert replies(text, 16) == [Reply("", True, 0)] * len(PROMPTS)
    assert joined(text) == [""] * len(PROMPTS)


def test_a_stop_token_at_the_limit_counts_as_stopped(model: Model, template: Template) -> None:
    text = WeightsModel(model, template, tuned=True)
    free, _ = slowly(model, encode_prompt(PROMPTS[0], template), [])
    place = next(n for n in range(2, WORDS) if free[n] not in free[:n])
    text.stops = [free[place]]
    for limit, stopped in [(place, False), (place + 1, True)]:
        ((_, reply),) = text.replies(PROMPTS[:1], max_new_tokens=limit, batch=1)
        assert (reply.stopped, reply.tokens) == (stopped, place)


def test_a_models_own_wish_for_penalties_changes_nothing(
    model: Model, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = WeightsModel(model, template, tuned=True)
    before = replies(text, 16)
    settings = model.network.generation_config
    for name, value in {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "do_sample": True}.items():
        monkeypatch.setattr(settings, name, value)
    assert replies(text, 16) == before


def test_two_streams_at_once_do_not_meet(model: Model, template: Template) -> None:
    """A page shows base and tuned side by side: each piece comes with the adapter as it was found."""
    loopback_servers = [WeightsModel(model, template, tuned=tuned) for tuned in (False, True, False)]
    alone = [list(text.stream(PROMPTS[0], max_new_tokens=WORDS)) for text in loopback_servers]
    streams = [text.stream(PROMPTS[0], max_new_tokens=WORDS) for text in loopback_servers]
    heard: list[list[str]] = [[] for _ in streams]
    for turn in range(WORDS):
        for stream, pieces in zip(streams, heard, strict=True):
            if turn == 3 and stream is streams[0]:
                assert isinstance(stream, Generator)
                stream.close()  # one listener leaves
            pieces.extend(piece for piece in [next(stream, "")] if piece)
            assert all(layer.enabled for layer in model.lora.values())
            assert not torch.is_inference_mode_enabled()
    assert heard[0] == alone[0][:3]
    assert heard[1:] == alone[1:]


def test_a_stream_writes_without_dropout(model: Model, template: Template) -> None:
    text = WeightsModel(model, template, tuned=True)
    before = joined(text)
    model.network.train()
    assert joined(text) == before


# --- pieces of characters -----------------------------------------------------------------------------------


class Scripted:
    """A model that says given tokens, whatever is asked."""

    def __init__(self, ids: list[int], width: int) -> None:
        self.ids, self.width, self.device = ids, width, torch.device("cpu")
        self.network: Any = self
        self.said = 0

    def __call__(self, **_: Any) -> Any:
        logits = torch.zeros(1, 1, self.width)
        logits[0, 0, self.ids[self.said]] = 1.0
        self.said += 1
        return SimpleNamespace(logits=logits, past_key_values=None)

    def eval(self) -> None:
        """Nothing to switch."""

    @contextlib.contextmanager
    def base(self) -> Iterator[None]:
        yield


TOKENIZER = make_tokenizer()
TEMPLATE = Template(TOKENIZER, TOKENIZER.chat_template, "tiny")


def spoken(ids: list[int], limit: int) -> list[str]:
    scripted: Any = Scripted([*ids, TOKENIZER.eos_token_id], len(TOKENIZER))
    return list(WeightsModel(scripted, TEMPLATE, tuned=True).stream(PROMPTS[0], max_new_tokens=limit))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=12))
def test_each_piece_is_a_whole_character(said: str) -> None:
    ids = TOKENIZER(said, add_special_tokens=False)["input_ids"]
    assume(not special_ids(TOKENIZER) & set(ids))  # a special token's name is one token
    assert len(ids) == len(said.encode())
    pieces = spoken(ids, limit=99)
    assert "".join(pieces) == said  # a beginning that may be that of a thought comes as one piece
    assert pieces[1:] == list(said)[len(said) - len(pieces[1:]) :]


def test_a_character_cut_by_the_limit_is_told_as_broken() -> None:
    ids = TOKENIZER("a日", add_special_tokens=False)["input_ids"]
    assert [spoken(ids, limit) for limit in (4, 3, 1, 0)] == [["a", "日"], ["a", "\ufffd"], ["a"], []]


def test_bytes_that_are_no_character_are_told_when_the_next_one_is() -> None:
    first, next_ids = TOKENIZER("日", add_special_tokens=False)["input_ids"][0], TOKENIZER("b")["input_ids"]
    assert spoken([first, *next_ids], limit=9) == ["\ufffdb"]
