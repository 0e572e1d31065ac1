"""Replies without the template's opening and without the thought, from weights and from a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from gguf_models import opened, write_model
from tiny import make_model, make_tokenizer
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.generation.from_weights import WeightsModel
from tunesmith.generation.text_model import ReplyFilter, build_reply
from tunesmith.models.build import load_model
from tunesmith.models.weights import Weights
from tunesmith.prompt.reply import ReplyFormat, ThoughtTags
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import encode

ASKED = (Turn("user", "Where?"),)
TEXT = "In the yard."
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADER = (  # a header that ends with a special token, a thought behind another header
    "{% for m in messages %}<|im_start|>{{ m.role }}"
    "{% if m.reasoning_content %} mind<s>{{ m.reasoning_content }}</s><|im_start|>{{ m.role }}{% endif %}"
    "{% if m.role == 'assistant' %} mouth{% endif %}<s>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


@pytest.fixture(scope="module", params=[(THINKS, ""), (THINKS, "Hm?"), (HEADER, ""), (HEADER, "Hm?")])
def taught(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Template, str, Path]:
    """A tiny model that knows one answer, with its thought, under a template."""
    chat, thought = request.param
    folder = make_model(tmp_path_factory.mktemp("taught"), "llama", template=None)
    network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    template = Template(make_tokenizer(), chat, "test.jinja")
    example = encode(Conversation("r", (*ASKED, Turn("assistant", TEXT, thought)), Origin("f", 1)), template)
    ids = torch.tensor([example.ids])
    labels = torch.where(torch.tensor([example.loss_mask]), ids, -100)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(80):
        loss = network(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    return network, template, thought, folder


def test_replies_from_weights(taught: tuple[Any, Template, str, Path]) -> None:
    network, template, thought, folder = taught
    network.save_pretrained(folder)
    loaded = load_model(Weights("tiny", folder, "0"), bits=16, device="cpu", precision="float32")
    model = WeightsModel(loaded, template, tuned=False)
    ((_, reply),) = model.replies([ASKED], max_new_tokens=64, batch=1)
    assert (reply.text, reply.reasoning, reply.stopped) == (TEXT, thought, True)
    assert "".join(model.stream(ASKED, max_new_tokens=64)) == TEXT


@pytest.mark.parametrize("own", [True, False], ids=["the file's template", "the training's template"])
def test_replies_from_a_gguf_file(taught: tuple[Any, Template, str, Path], own: bool, tmp_path: Path) -> None:
    network, template, thought, _ = taught
    path = write_model(tmp_path / "taught.gguf", network, chat=template.text)
    with opened(path, template=None if own else template) as model:
        ((_, reply),) = model.replies([ASKED], max_new_tokens=64, batch=1)
        assert (reply.text, reply.reasoning, reply.stopped) == (TEXT, thought, True)
        assert "".join(model.stream(ASKED, max_new_tokens=64)) == TEXT


OPENED = ReplyFormat("</think>", (ThoughtTags("", "</think>"), ThoughtTags("<think>", "</think>")))


@pytest.mark.parametrize(
    ("form", "output", "reasoning", "text"),
    [
        (ReplyFormat(), "Plain.", "", "Plain."),
        (ReplyFormat(), "<think>\nWhy?\n</think>\n\nSo.", "Why?", "So."),
        (ReplyFormat(), " \n<think></think> So. <think>x</think>", "", "So. <think>x</think>"),
        (ReplyFormat(), "<thin air>", "", "<thin air>"),
        (ReplyFormat(), "<think>Why, oh why", "Why, oh why", ""),  # the thought did not end
        (ReplyFormat(), "<th", "", "<th"),
        (ReplyFormat(), "", "", ""),
        (OPENED, "Why?\n</think>\n\nSo.", "Why?", "So."),
        (OPENED, "\n</think>\n\nSo.", "", "So."),
        (OPENED, "So.", "So.", ""),
        (ReplyFormat("Answer:"), "Answer: So.", "", "So."),
        (ReplyFormat("Answer:"), "Answ", "", "Answ"),
    ],
)
def test_an_output_divides_into_a_thought_and_a_reply(
    form: ReplyFormat, output: str, reasoning: str, text: str
) -> None:
    assert form.split(output) == (reasoning, text)
    for size in (1, 2, 3, 7):
        stream = ReplyFilter(form, ())
        visible = "".join(stream.feed(output[at : at + size]) for at in range(0, len(output), size)) + stream.flush()
        assert (stream.reasoning, visible.strip()) == (reasoning, text)


def test_a_stop_string_is_looked_for_in_the_reply_alone() -> None:
    output = "<think>User: asks</think>Aye.\nUser: more"
    stream = ReplyFilter(ReplyFormat(), ["User:"])
    assert "".join(map(stream.feed, output)) + stream.flush() == "Aye.\n" and stream.hit
    reply = build_reply(output, ReplyFormat(), ["User:"], ended=True, tokens=9)
    assert (reply.text, reply.reasoning, reply.stopped, reply.cut) == ("Aye.", "User: asks", False, "User: more")
