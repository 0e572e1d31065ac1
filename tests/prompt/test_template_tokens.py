"""Loss masks under the chat templates of common model families."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tiny import CHATML, make_tokenizer
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.prompt.pack import IGNORE_INDEX, check_batch, collate
from tunesmith.prompt.template import PLAIN_TEMPLATE, Template, load_template
from tunesmith.prompt.tokens import Example, RewrittenTurnError, encode, encode_prompt, expand, loss_pieces, stop_ids

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (  # as in Phi-3-mini: eos_token once, after the whole text
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<|system|>\n' + message['content'] + '<|end|>\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
FAMILIES: dict[str, tuple[str, list[str]]] = {
    "chatml": (CHATML, []),
    "llama2": (LLAMA2, []),
    "gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>"]),
    "phi3": (PHI3, ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]),
    "plain": (PLAIN_TEMPLATE, []),
}
STOPS = {  # the template's end of answer, then the tokenizer's end of text
    "chatml": ["<|im_end|>"],
    "llama2": ["</s>"],
    "gemma": ["<end_of_turn>", "</s>"],
    "phi3": ["<|end|>", "</s>"],
    "plain": ["</s>"],
}
PIECES = {  # the conversation TWO below, by hand: text without loss and text with loss in turns
    "chatml": (
        "<|im_start|>user\nhi é<|im_end|>\n<|im_start|>assistant\n",
        "Aye.<|im_end|>",
        "\n<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n",
        "1. Go\n2. 日<|im_end|>",
        "\n",
    ),
    "llama2": ("<s>[INST] hi é [/INST]", " Aye. </s>", "<s>[INST] bye [/INST]", " 1. Go\n2. 日 </s>"),
    "gemma": (
        "<s><start_of_turn>user\nhi é<end_of_turn>\n<start_of_turn>model\n",
        "Aye.<end_of_turn>",
        "\n<start_of_turn>user\nbye<end_of_turn>\n<start_of_turn>model\n",
        "1. Go\n2. 日<end_of_turn>",
        "\n",
    ),
    "phi3": (
        "<|user|>\nhi é<|end|>\n<|assistant|>\n",
        "Aye.<|end|>",
        "\n<|user|>\nbye<|end|>\n<|assistant|>\n",
        "1. Go\n2. 日<|end|>",
        "\n</s>",
    ),
    "plain": (
        "### Instruction:\nhi é\n\n### Response:\n",
        "Aye.</s>",
        "\n\n### Instruction:\nbye\n\n### Response:\n",
        "1. Go\n2. 日</s>",
        "\n\n",
    ),
}


def conversation(*texts: str, system: str = "") -> Conversation:
    turns = [Turn("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(texts)]
    return Conversation("r", (*([Turn("system", system)] if system else []), *turns), Origin("rows.jsonl", 1))


ONE = conversation("how?", "Aye.")
TWO = conversation("hi é", "Aye.", "bye", "1. Go\n2. 日")


def template(family: str) -> Template:
    text, added = FAMILIES[family]
    return given(text, added)


def given(text: str, added: list[str] | None = None) -> Template:
    tokenizer = make_tokenizer(CHATML if text == CHATML else None)
    if added:
        tokenizer.add_special_tokens({"additional_special_tokens": added})
    return Template(tokenizer, text, "test.jinja")


def pieces(example: Example, chat_template: Template) -> tuple[tuple[str, bool], ...]:
    runs = itertools.groupby(zip(example.ids, example.loss_mask, strict=True), key=lambda pair: pair[1])
    return tuple((chat_template.tokenizer.decode([index for index, _ in run]), learnt) for learnt, run in runs)


def names(chat_template: Template, ids: list[int]) -> list[str]:
    return list(chat_template.tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_and_its_stop_token_carry_loss_and_nothing_else_does(family: str) -> None:
    chat_template = template(family)
    example = encode(TWO, chat_template)
    expected = tuple((text, place % 2 == 1) for place, text in enumerate(PIECES[family]))
    assert pieces(example, chat_template) == expected
    assert tuple(loss_pieces(example, chat_template)) == expected
    assert names(chat_template, [example.stop]) == STOPS[family][:1]


@pytest.mark.parametrize("family", FAMILIES)
def test_learning_everything_ends_at_the_last_stop_token(family: str) -> None:
    chat_template = template(family)
    parts = PIECES[family]
    expected = [("".join(parts[:4]), True)] + [(text, False) for text in parts[4:]]
    assert list(pieces(encode(TWO, chat_template, "everything"), chat_template)) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_the_templates_stop_comes_first_then_the_tokenizers(family: str) -> None:
    chat_template = template(family)
    assert names(chat_template, stop_ids(chat_template)) == STOPS[family]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("row", [ONE, TWO], ids=["one turn", "two turns"])
def test_a_prompt_is_the_beginning_of_its_example_without_loss(family: str, row: Conversation) -> None:
    chat_template = template(family)
    example, prompt = encode(row, chat_template), encode_prompt(row.prompt, chat_template)
    assert example.ids[: len(prompt)] == tuple(prompt)
    assert example.loss_mask[len(prompt)]
    assert not example.loss_mask[len(prompt) - 1]


@pytest.mark.parametrize("answer", ["\nAye.", "\n\nAye.", "Aye.", "  Aye."])
def test_a_tokenizer_that_joins_line_breaks_gives_the_prompt_the_same_tokens(answer: str) -> None:
    alphabet = ["<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ", "ĠĠ"]
    inner = Tokenizer(models.BPE({token: n for n, token in enumerate(alphabet)}, [("Ċ", "Ċ"), ("Ġ", "Ġ")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    chat_template = Template(tokenizer, CHATML, "test.jinja")
    row = conversation("how?", answer)
    example, prompt = encode(row, chat_template), encode_prompt(row.prompt, chat_template)
    assert example.ids[: len(prompt)] == tuple(prompt)
    head = "<|im_start|>user\nhow?<|im_end|>\n<|im_start|>assistant\n"
    assert pieces(example, chat_template) == ((head, False), (f"{answer}<|im_end|>", True), ("\n", False))


@pytest.mark.parametrize("family", ["chatml", "llama2", "phi3", "plain"])
def test_a_system_message_carries_no_loss(family: str) -> None:
    chat_template = template(family)
    (before, first), (after, second), *_ = pieces(
        encode(conversation("how?", "Aye.", system="Be kind."), chat_template), chat_template
    )
    assert (first, second) == (False, True)
    assert "Be kind." in before and "Be kind." not in after


def test_padding_with_the_stop_token_leaves_loss_on_the_stop_and_none_on_padding() -> None:
    chat_template = template("chatml")
    chat_template.tokenizer.pad_token = "<|im_end|>"
    stop = chat_template.tokenizer.convert_tokens_to_ids("<|im_end|>")
    short, long = encode(ONE, chat_template), encode(TWO, chat_template)
    batch = collate([short, long], chat_template.tokenizer.pad_token_id)
    gap = len(long) - len(short)
    assert gap > 0 and batch.ids[0][-gap:] == [stop] * gap
    assert batch.labels[0][-gap:] == [IGNORE_INDEX] * gap and batch.mask[0][-gap:] == [0] * gap
    assert [n for n, label in enumerate(batch.labels[0]) if label == stop] == [len(short) - 2]
    assert (batch.labels[1].count(stop), batch.ids[1].count(stop)) == (2, 4)  # two users' turns end with it too
    check_batch(batch, stop)


CHAT = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize(
    ("text", "row", "message"),
    [
        (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}",
            ONE,
            "no stop token follows",
        ),
        (CHATML.replace("assistant\n", "assistant\nNow: "), ONE, "before an answer differs"),
        ("{{ messages | length }}" + CHAT, ONE, "before an answer differs"),
        ("{{ bos_token }}{{ bos_token }}" + CHAT, ONE, "two start tokens"),
        (GEMMA, conversation("how?", "Aye.", system="Be kind."), "System role not supported"),
        (LLAMA2, Conversation("r", (Turn("assistant", "Aye."),), Origin("f", 1)), "fails on the conversation"),
        ("{{ messages[0].nothing.at_all }}", ONE, "fails on the conversation"),
        ("{% for m in messages %}", ONE, "fails on the conversation"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}" + CHAT, ONE, "'__class__' of 'str' object is unsafe"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}" + CHAT, ONE, "object is unsafe"),
        ("{{ '{0.__class__.__mro__}'.format('a') }}" + CHAT, ONE, "'__class__' of 'str' object is unsafe"),
        ("{{ messages.append(1) }}" + CHAT, ONE, "'append' of 'list' object is unsafe"),
        ("{% import 'os' as os %}{{ os.getcwd() }}" + CHAT, ONE, "no loader"),
        ("{% include '/etc/passwd' %}" + CHAT, ONE, "no loader"),
        ("{% for n in range(10 ** 9) %}a{% endfor %}" + CHAT, ONE, "Range too big"),
    ],
)
def test_a_template_that_cannot_be_trained_on_is_refused(text: str, row: Conversation, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        encode(row, given(text))
    assert message in caught.value.what
    assert caught.value.where == "test.jinja"


def test_the_error_for_a_system_message_says_to_leave_it_out() -> None:
    with pytest.raises(ModelError) as caught:
        template("gemma").render(conversation("how?", "Aye.", system="Be kind.").turns)
    assert caught.value.next == "Leave the system message out"


def test_an_empty_conversation_is_refused_like_any_other() -> None:
    with pytest.raises(ModelError, match="fails on the conversation"):
        encode_prompt((), template("gemma"))


@pytest.mark.parametrize(
    ("text", "learned"),
    [
        (  # ends only the last answer
            "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if not add_generation_prompt %}</s>{% endif %}",
            ["Aye.\n</s>", "1. Go\n2. 日\n</s>"],
        ),
        (  # opens a thought, and writes answers without one
            CHATML.replace("assistant\n", "assistant\n<think>\n"),
            ["\n</think>\n\nAye.<|im_end|>", "\n</think>\n\n1. Go\n2. 日<|im_end|>"],
        ),
        (  # trims the end of its generation prompt
            "{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}</s>{% endfor %}"
            "{% if add_generation_prompt %}<s>assistant: {% endif %}",
            ["Aye.</s>", "1. Go\n2. 日</s>"],
        ),
        (  # ends an answer only by the next turn's header
            "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}"
            "{% else %}<s>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<s>{% endif %}",
            ["Aye.<|im_start|>", "1. Go\n2. 日<|im_start|>"],
        ),
        (  # writes a header with a special token before each answer
            "{% for m in messages %}<|im_start|>{{ m['role'] }}<s>{{ m['content'] }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}",
            ["<s>Aye.<|im_end|>", "<s>1. Go\n2. 日<|im_end|>"],
        ),
    ],
)
def test_every_answer_carries_loss_whatever_the_template_writes_around_it(text: str, learned: list[str]) -> None:
    chat_template = given(text)
    examples = [encode(row, chat_template) for row in expand(TWO, chat_template)]
    runs = [text for example in examples for text, is_learned in pieces(example, chat_template) if is_learned]
    assert runs == learned
    for row, example in zip(expand(TWO, chat_template), examples, strict=True):
        prompt = encode_prompt(row.prompt, chat_template)
        assert example.ids[: len(prompt)] == tuple(prompt)


def test_a_rewritten_conversation_is_refused_where_it_may_not_be_expanded() -> None:
    chat_template = given(RETHINKS)
    with pytest.raises(RewrittenTurnError, match=r"changes answer 1 of 2 .* Set prompt.expand to auto"):
        expand(TWO, chat_template, "never")
    assert expand(ONE, chat_template, "never") == [ONE]


def test_an_expanded_row_keeps_origin_group_and_fields() -> None:
    row = Conversation("r", TWO.turns, Origin("rows.jsonl", 7), "g", {"a": 1})
    first, second = expand(row, given(RETHINKS))
    assert (first.id, second.id) == ("r.1", "r.2")
    assert {(each.origin, each.group, each.fields["a"]) for each in (first, second)} == {(row.origin, "g", 1)}
    assert [turn.learn for turn in second.turns] == [True, False, True, True]


def test_an_answer_with_weight_0_carries_no_loss() -> None:
    chat_template = template("chatml")
    turns = (TWO.turns[0], Turn("assistant", "Aye.", learn=False), *TWO.turns[2:])
    learned = [
        text
        for text, is_learned in pieces(encode(Conversation("r", turns, Origin("f", 1)), chat_template), chat_template)
        if is_learned
    ]
    assert learned == ["1. Go\n2. 日<|im_end|>"]
    nothing = Conversation("r", (TWO.turns[0], Turn("assistant", "Aye.", learn=False)), Origin("f", 1))
    with pytest.raises(DataError, match="no answer of the row carries loss"):
        encode(nothing, chat_template)


@pytest.mark.parametrize(
    "text",
    [
        CHATML.replace("{{ message['content'] }}", "{{ message['content'] | replace('road', 'way') }}"),
        CHATML.replace("{{ message['content'] }}", "{{ message['content'][:8] }}"),
        CHATML.replace("{{ message['content'] }}", "{{ message['content'].split('#')[-1] }}"),
    ],
)
def test_an_answer_that_the_template_changes_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"changes the answer's text|leaves out the answer"):
        encode(conversation("how?", "Take the #road home."), given(text))


RETHINKS = (  # as in Qwen3: only the last answer has its thought, earlier ones do not
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}(thinks) {% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_the_opening_of_an_answer_is_trained_on_and_not_scored() -> None:
    chat_template = given(RETHINKS)
    example = encode(ONE, chat_template)
    assert [text for text, is_learned in pieces(example, chat_template) if is_learned] == ["(thinks) Aye.<|im_end|>"]
    assert [text for text, is_learned in pieces(example.scored, chat_template) if is_learned] == ["Aye.<|im_end|>"]


@pytest.mark.parametrize(("adds", "begin"), [(True, "<s>"), (False, "")])
def test_the_plain_template_begins_as_the_tokenizer_would(adds: bool, begin: str) -> None:
    tokenizer: Any = make_tokenizer(None)
    if adds:
        tokenizer._tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    chat_template = load_template(tokenizer, "model", Path())
    assert (chat_template.text, chat_template.source) == (PLAIN_TEMPLATE, "the plain template (the model has none)")
    assert chat_template.render(ONE.turns) == begin + "### Instruction:\nhow?\n\n### Response:\nAye.</s>\n\n"
    assert names(chat_template, encode_prompt(ONE.prompt, chat_template)).count("<s>") == adds


def test_a_template_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(CHATML)
    chat_template = load_template(make_tokenizer(None), "own.jinja", tmp_path)
    assert (chat_template.text, chat_template.source) == (CHATML, str(tmp_path / "own.jinja"))
    with pytest.raises(RecipeError, match="cannot be read"):
        load_template(make_tokenizer(None), "none.jinja", tmp_path)


def with_flags(token: str, **flags: bool) -> Template:
    """ChatML with a tokenizer whose `token` absorbs whitespace beside it."""
    from tokenizers import AddedToken

    tokenizer = make_tokenizer(CHATML)
    tokenizer._tokenizer.add_special_tokens([AddedToken(token, special=True, **flags)])
    return Template(tokenizer, CHATML.replace("<|im_end|>", token), "test.jinja")


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}])
@pytest.mark.parametrize("answer", ["Aye.\n", "Aye. ", "Aye.", "Aye.\n\n"])
def test_an_end_token_that_absorbs_whitespace_ends_its_own_answer(flags: dict[str, bool], answer: str) -> None:
    chat_template = with_flags("<|over|>", **flags)
    for row in (conversation("how?", answer), conversation("how?", answer, "bye", answer)):
        runs = [
            text
            for example in (encode(each, chat_template) for each in expand(row, chat_template))
            for text, on in pieces(example, chat_template)
            if on
        ]
        assert len(runs) == len(row.turns) // 2
        assert all("".join(run.split()) == "Aye.<|over|>" for run in runs)


def test_the_prompts_last_token_carries_no_loss_if_it_absorbs_whitespace() -> None:
    chat = CHATML.replace("assistant\n", "assistant<|head|>").replace("['role'] }}\n", "['role'] }}<|head|>")
    chat_template = Template(with_flags("<|head|>", rstrip=True).tokenizer, chat, "test.jinja")
    first = next(
        text for text, on in pieces(encode(conversation("how?", "    return x"), chat_template), chat_template) if on
    )
    assert first.strip().startswith("return")


def test_text_that_the_tokenizer_loses_is_refused() -> None:
    alphabet = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz.? \n"]
    inner = Tokenizer(models.BPE({token: n for n, token in enumerate(alphabet)}, [], unk_token="<unk>"))
    inner.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<|im_end|>", pad_token="<pad>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    chat_template = Template(tokenizer, CHATML, "test.jinja")
    assert encode(conversation("how?", "aye."), chat_template).answers == 1
    with pytest.raises(DataError, match="the tokenizer cannot represent the answer"):
        encode(conversation("how?", "aye 日."), chat_template)


def test_an_end_of_text_that_also_stands_for_unknown_text_ends_an_answer() -> None:
    alphabet = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({token: n for n, token in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    end = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    chat_template = Template(
        PreTrainedTokenizerFast(tokenizer_object=inner, **end), PLAIN_TEMPLATE, "the plain template"
    )
    assert names(chat_template, stop_ids(chat_template)) == ["<|endoftext|>"]
    with pytest.raises(DataError, match="special token"):
        encode(conversation("how?", "Aye.<|endoftext|>"), chat_template)


def test_everything_leaves_out_an_answer_with_weight_0() -> None:
    chat_template = template("chatml")
    turns = (TWO.turns[0], Turn("assistant", "Aye.", learn=False), *TWO.turns[2:])
    example = encode(Conversation("r", turns, Origin("f", 1)), chat_template, "everything")
    assert "Aye." in "".join(text for text, on in pieces(example, chat_template) if not on)
    assert "Aye." not in "".join(text for text, on in pieces(example, chat_template) if on)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<think> is a tag", "would be read as a thought"),
        ("<think>never closed", "would be read as a thought"),
    ],
)
def test_an_answer_that_would_be_read_as_a_thought_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode(conversation("how?", text), template("chatml"))


CONTENT = "{{ message['content'] }}"
NO_SYSTEM = "{{ message['content'] if message['role'] != 'system' else '' }}"
CUT = "{{ message['content'] if message['role'] == 'assistant' else message['content'][:4] }}"


@pytest.mark.parametrize(
    ("content", "row", "role"),
    [
        (NO_SYSTEM, conversation("how?", "Aye.", system="Be kind."), "system"),
        (CUT, conversation("how are you?", "Aye."), "user"),
    ],
)
def test_a_turn_that_the_template_leaves_out_is_refused(content: str, row: Conversation, role: str) -> None:
    with pytest.raises(DataError, match=f"leaves out or changes the {role}'s text"):
        encode(row, given(CHATML.replace(CONTENT, content)))
