"""Whether a file is the model that was tested: faults that must be seen, figures against float64, a real file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gguf_models import opened, sayable, write_model
from tiny import CHATML, make_model, make_tokenizer
from tunesmith.config.recipe import Evaluate, Export, NamedSetting
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.errors import ModelError, RunError
from tunesmith.evaluation.answer_loss import answer_losses
from tunesmith.evaluation.comparison import RowReply, generate_replies
from tunesmith.exporting.acceptance import GainShare, find_problems, gain_share
from tunesmith.exporting.job import File
from tunesmith.exporting.likelihood import (
    Reference,
    compare_likelihoods,
    compare_prompts,
    divergence,
    examples,
    reference_scores,
)
from tunesmith.exporting.verification import Verification, prove
from tunesmith.generation.from_gguf import GgufModel
from tunesmith.generation.from_weights import WeightsModel
from tunesmith.generation.text_model import Reply, RuntimeStats, TokenScore
from tunesmith.models.build import add_adapter, load_model
from tunesmith.models.weights import fetch_weights
from tunesmith.prompt.template import Template, load_template, load_tokenizer
from tunesmith.prompt.tokens import Example, encode, encode_prompt

VOCABULARY = 261
START = "{{ bos_token }}" + CHATML
FACTS = RuntimeStats(0.5, 1000, 2000, 2, 256, 1, 300, 2.0)


def row(name: str, group: str, answer: str) -> Conversation:
    return Conversation(name, (Turn("user", f"what of {name}?"), Turn("assistant", answer)), Origin("f", 1), group)


ROWS = [row(f"r{n}", f"g{n % 10}", f"open the {n} door and tap the {n * 7 % 31} key twice") for n in range(30)]
PARTS = {"test": ROWS[:20], "unseen": ROWS[20:]}


def said(texts: Sequence[str], loss: float | None = None, stopped: bool = True) -> list[RowReply]:
    places = [(part, each.id) for part, members in PARTS.items() for each in members]
    spread = [None if loss is None else loss + 0.01 * (n % 5) for n in range(len(texts))]
    return [
        RowReply(name, part, Reply(text, stopped, 9), nats)
        for (part, name), text, nats in zip(places, texts, spread, strict=True)
    ]


BASE = said([f"I am not sure about door {n}" for n in range(30)], loss=3.0)
TUNED = said([each.answer if n % 4 else f"open the {n} door and wait" for n, each in enumerate(ROWS)], loss=0.5)


def thoughts(before: Sequence[int], noise: float = 0.0) -> np.ndarray:
    """ln p of every token behind `before`, made up from it alone; `noise` makes another model of it."""
    rng = np.random.default_rng([len(before), *before[-3:]])
    scores = rng.normal(size=VOCABULARY) * 3
    scores = scores + noise * rng.normal(size=VOCABULARY)
    log_sum = float(np.logaddexp.reduce(scores))
    return scores - log_sum


@dataclass
class Fake:
    """A runtime that is told what to say; by itself it is the adapter."""

    template: Template
    texts: dict[str, Reply] = field(default_factory=dict)
    chat: str = CHATML
    adds: int = 0
    noise: float = 0.0
    broken: bool = False
    facts: RuntimeStats = FACTS
    asked: int = 0

    def render(self, turns: Sequence[Turn]) -> str:
        if self.chat == "refuses":
            raise ModelError("llama.cpp refuses: no such turn", where="file.gguf")
        return replace(self.template, text=self.chat).render(turns, generate=True)

    def tokens(self, text: str) -> list[int]:
        return [1] * self.adds + list(self.template.tokenizer(text)["input_ids"])

    def replies(
        self, prompts: Sequence[Sequence[Turn]], *, max_new_tokens: int, batch: int
    ) -> Iterator[tuple[int, Reply]]:
        for place in reversed(range(len(prompts))):
            self.asked += 1
            yield place, self.texts[prompts[place][-1].text]

    def scores(self, tokens: Sequence[int], *, start: int, top: int = 1) -> Iterator[TokenScore]:
        for place in range(start, len(tokens)):
            logs = thoughts(tokens[:place], self.noise)
            best = np.argsort(-logs)[:top]
            nats = math.nan if self.broken else -float(logs[tokens[place]])
            yield TokenScore(tokens[place], nats, tuple((int(n), float(logs[n])) for n in best))

    def close(self) -> None:
        """Nothing runs."""


@pytest.fixture(scope="module")
def template() -> Template:
    return Template(make_tokenizer(), CHATML, "the tests' template")


def faithful(template: Template, answered: Sequence[RowReply] = TUNED, **other: Any) -> Fake:
    return Fake(template, {r.prompt[-1].text: a.reply for r, a in zip(ROWS, answered, strict=True)}, **other)


def known_of(found: Sequence[Example], kept: int = VOCABULARY) -> list[Reference]:
    """What the made-up adapter thinks, in float64."""
    made = []
    for each in found:
        places = [place for place, learnt in enumerate(each.loss_mask) if learnt]
        tables = [thoughts(each.ids[:place]) for place in places]
        ids = np.array([np.argsort(-table)[:kept] for table in tables])
        tokens = np.array([each.ids[place] for place in places])
        for line, token in zip(ids, tokens, strict=True):
            if token not in line:
                line[-1] = token
        nats = np.array([-table[token] for table, token in zip(tables, tokens, strict=True)])
        made.append(Reference(each.row, tokens, nats, ids, np.take_along_axis(np.array(tables), ids, 1)))
    return made


def proof(runtime: Any, path: Path, *, primary: str = "rougeL", exact: bool = False, **other: Any) -> Verification:
    metrics = [NamedSetting(name, {}) for name in ("loss", "rouge", "length")]
    template = other.pop("template", None) or runtime.template
    some = examples(PARTS, template, learn="answer", limit=4, seed=7)
    settings: dict[str, Any] = {
        "template": template, "rows": ROWS, "parts": PARTS, "base": BASE, "adapter": TUNED, "examples": some,
        "reference": known_of(some), "settings": Export(), "seed": 7,
        "reply_log_path": path / "export.part", "inputs": {"a": "1"},
        "evaluate": Evaluate(metrics=metrics, primary=primary), **other,
    }  # fmt: skip
    return prove(File("q4", path / "q4.gguf", exact), runtime, **settings)


# --- the whole ----------------------------------------------------------------------------------------------


def test_a_faithful_file_is_verified(template: Template, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    found = proof(faithful(template), tmp_path, exact=True, on_progress=lambda *words: heard.append(words))
    assert found.problems == () and found.verified
    assert (found.share.share, found.share.low, found.share.high) == (1.0, 1.0, 1.0)
    assert found.likelihood.agreement == 1.0
    assert found.likelihood.divergence_most < 1e-6
    assert found.likelihood.file == pytest.approx(found.likelihood.adapter, rel=1e-9)
    assert (found.replies.rows, found.replies.identical, found.replies.empty) == (30, 30, 0)
    assert set(found.replies.differences) == {"rouge1", "rouge2", "rougeL", "rougeLsum", "length", "stops", "run_on"}
    assert (found.prompts.rows, found.prompts.unlike) == (30, 0)
    assert [each[0] for each in heard if each[1] == each[2]] == ["prompts", "likelihood", "replies"]
    plain = json.loads(json.dumps(found.describe(), allow_nan=False))
    assert plain["verified"] is True
    assert plain["facts"]["rate"] == 150
    assert plain["replies"]["scores"]["rougeL"]["file"] == plain["replies"]["scores"]["rougeL"]["adapter"]
    assert [each.reply for each in found.replies.answered] == [each.reply for each in TUNED]


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ({"chat": CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant")},
         r"produce other tokens than training for 30 of 30 prompts; for row 'r0', at token \d+ it reads .*assistant', "
         r"training read .*assistant\\n'"),
        ({"chat": "refuses"}, "30 of 30 prompts; for row 'r0', file.gguf: llama.cpp refuses: no such turn"),
        ({"adds": 1}, "^30 of 30 prompts begin with a start token that training did not have; nothing else differs"),
        ({"noise": 9.0}, r"likeliest token is the adapter's at .* % of \d+ tokens .*, less than 80 % \(export.agree\)"),
        ({"broken": True}, r"At (\d+) of \1 tokens of given answers the file's figures are not finite"),
    ],
)  # fmt: skip
def test_a_fault_of_reading_is_told(template: Template, tmp_path: Path, fault: dict[str, Any], problem: str) -> None:
    found = proof(faithful(template, **fault), tmp_path)
    assert not found.verified
    assert len([each for each in found.problems if matches(problem, each)]) == 1
    assert len(found.problems) == 1
    json.dumps(found.describe(), allow_nan=False)


def matches(pattern: str, text: str) -> bool:
    import re

    assert text.endswith(".") and "\n" not in text
    return re.search(pattern, text) is not None


def changed(change: Callable[[int, RowReply], Reply]) -> list[RowReply]:
    return [replace(each, reply=change(n, each)) for n, each in enumerate(TUNED)]


@pytest.mark.parametrize(
    ("spoilt", "problems"),
    [
        (changed(lambda n, each: replace(each.reply, stopped=False)),
         [r"^0 % of the file's replies end by themselves, 100 % of the adapter's \(difference -1, 95 % interval"]),
        (changed(lambda n, each: replace(each.reply, stopped=n % 3 > 0)), [r"^66\.7 % of the file's replies end by"]),
        (changed(lambda n, each: replace(each.reply, text="", tokens=0)),
         ["^30 of 30 replies are empty", r"keeps -.* and is detectably worse: 0 against 0\.\d+, difference -0"]),
        (changed(lambda n, each: replace(each.reply, text="  ") if n == 3 else each.reply),
         ["^1 of 30 replies are empty where", "^The file keeps 9.* although these rows do not prove"]),
        (changed(lambda n, each: TUNED[(n + 11) % 30].reply),
         [r"^The file keeps \d\d\.\d % of the adapter's gain on 'rougeL' \(95 % interval \d.* to \d.* %, 30 rows\), "
          r"less than 98 % \(export\.keep\), and is detectably worse"]),
    ],
)  # fmt: skip
def test_a_fault_of_writing_is_told(
    template: Template, tmp_path: Path, spoilt: list[RowReply], problems: list[str]
) -> None:
    found = proof(faithful(template, spoilt), tmp_path)
    assert [matches(one, other) for one, other in zip(problems, found.problems, strict=True)] == [True] * len(problems)


def test_a_reply_that_is_empty_with_the_adapter_too_is_no_fault(template: Template, tmp_path: Path) -> None:
    silent = changed(lambda n, each: Reply("", True, 0) if n == 3 else each.reply)
    assert proof(faithful(template, silent), tmp_path, adapter=silent).verified


def test_a_primary_score_that_no_reply_of_the_file_has(template: Template, tmp_path: Path) -> None:
    wish = Evaluate(metrics=[NamedSetting("distinct", {})], primary="distinct_1")
    found = proof(faithful(template, changed(lambda n, each: Reply("", True, 0))), tmp_path, evaluate=wish)
    assert matches("None of the file's replies has a score 'distinct_1'", found.problems[1])
    assert found.replies.lost == ("distinct_1", "distinct_2") and found.share.rows == 0


def test_exact_files_are_held_to_more(template: Template, tmp_path: Path) -> None:
    found = proof(faithful(template), tmp_path / "a")
    for high, exact, told in ((0.993, True, 1), (0.993, False, 0), (1.0, True, 0)):
        share = replace(found.share, share=0.99, low=0.985, high=high, drop=None)
        said = find_problems(
            found.prompts, found.likelihood, found.replies, share, Export(), primary="rougeL", exact=exact
        )
        assert len(said) == told
        assert all(matches(r"keeps 99 % .* less than 99\.5 % \(export\.keep_exact\)", each) for each in said)
    nearly_same = faithful(template, noise=0.3)
    assert 0.8 < proof(nearly_same, tmp_path / "c").likelihood.agreement < 0.95
    assert matches(r"less than 95 % \(export\.agree_exact\)", *proof(nearly_same, tmp_path / "d", exact=True).problems)


def test_an_adapter_without_gain_has_no_share_but_a_worse_file_is_seen(template: Template, tmp_path: Path) -> None:
    found = proof(faithful(template), tmp_path / "same", base=TUNED)
    assert found.verified and found.share.share is None
    assert "the adapter's own gain is not above zero (difference +0" in found.share.reason
    (problem,) = proof(faithful(template, BASE), tmp_path / "worse", base=TUNED).problems
    assert matches("^The file is detectably worse than the adapter on 'rougeL': 0.* against 0", problem)
    found = proof(faithful(template, BASE), tmp_path / "neither", primary="length")
    assert found.verified and found.share.reason == "it is neither good nor bad"


@pytest.mark.parametrize("primary", ["loss", "perplexity"])
def test_a_loss_is_kept_on_the_rows_that_the_runtime_scored(template: Template, tmp_path: Path, primary: str) -> None:
    some = examples(PARTS, template, learn="answer", limit=10, seed=7)
    own = dict(zip([each.row for each in some], [float(each.nats.mean()) for each in known_of(some)], strict=True))
    adapter = [replace(each, loss=own.get(each.id, 5.0)) for each in TUNED]
    base = [replace(each, loss=own.get(each.id, 5.0) + 2) for each in TUNED]
    more: dict[str, Any] = {
        "primary": primary,
        "examples": some,
        "reference": known_of(some),
        "base": base,
        "adapter": adapter,
    }
    found = proof(faithful(template), tmp_path / "a", **more)
    assert found.verified and found.share.rows == 10
    assert found.share.share == pytest.approx(1.0, abs=1e-6)
    worse = proof(faithful(template, noise=2.0), tmp_path / "b", settings=Export(agree=0.0), **more)
    theirs = [worse.likelihood.losses[each.row] for each in some]
    fold: Callable[[Any], Any] = np.exp if primary == "perplexity" else np.asarray
    b, a, f = (fold(np.mean(each)) for each in ([own[each.row] + 2 for each in some], list(own.values()), theirs))
    assert worse.share.share == pytest.approx((f - b) / (a - b))
    assert worse.share.share is not None and worse.share.share < 0.98
    assert f"on '{primary}'" in worse.problems[0]


def test_what_was_answered_is_not_asked_again(template: Template, tmp_path: Path) -> None:
    class Dies(Fake):
        def replies(self, prompts: Any, **how: Any) -> Iterator[tuple[int, Reply]]:
            for count, found in enumerate(super().replies(prompts, **how)):
                if count == 12:
                    raise ModelError("llama.cpp broke off")
                yield found

    whole = faithful(template)
    with pytest.raises(ModelError, match="broke off"):
        proof(Dies(template, whole.texts), tmp_path)
    found = proof(whole, tmp_path)
    assert whole.asked == 30 - 12
    assert found.verified and [each.reply for each in found.replies.answered] == [each.reply for each in TUNED]
    proof(whole, tmp_path, inputs={"a": "2"})
    assert whole.asked == 30 - 12 + 30


def test_what_cannot_be_compared_is_an_error(template: Template, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"row 'r0' of test: the adapter has no reply to it.*Evaluate the run again"):
        proof(faithful(template), tmp_path, adapter=TUNED[1:])
    with pytest.raises(RunError, match="there are no test rows"):
        proof(faithful(template), tmp_path, parts={"test": []})
    some = examples(PARTS, template, learn="answer", limit=4, seed=7)
    with pytest.raises(RunError, match="the adapter's scores are of other tokens"):
        proof(faithful(template), tmp_path, reference=known_of(some)[::-1])
    assert matches(
        "No answer could be scored", *proof(faithful(template), tmp_path, examples=[], reference=[]).problems
    )


# --- prompts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chat", "file_chat", "adds", "unlike", "counts"),
    [
        (START, START, 0, 0, (0, 0, 0)),
        (START, CHATML, 1, 0, (0, 0, 0)),  # the runtime takes it off and the tokenizer puts it back
        (START, START, 1, 30, (0, 30, 0)),
        (START, CHATML, 0, 30, (30, 0, 0)),
        (CHATML, START, 0, 30, (0, 0, 30)),
        (CHATML, START, 1, 30, (0, 30, 0)),
    ],
)
def test_start_tokens(
    template: Template, chat: str, file_chat: str, adds: int, unlike: int, counts: tuple[int, int, int]
) -> None:
    trained = replace(template, text=chat)
    assert encode_prompt(ROWS[0].prompt, trained)[0] == (1 if chat == START else 3)
    found = compare_prompts(trained, ROWS, Fake(template, chat=file_chat, adds=adds))
    assert (found.unlike, (found.bos_missing, found.bos_doubled, found.bos_added)) == (unlike, counts)
    assert len(found.shown) == min(3, unlike) and found.bos_alone == unlike


def test_a_missing_start_token_is_told_as_the_cause_where_nothing_else_differs(
    template: Template, tmp_path: Path
) -> None:
    trained = replace(template, text=START)
    found = proof(faithful(trained, chat=CHATML), tmp_path / "alone", template=trained)
    assert found.problems == ("30 of 30 prompts lack the start token that training had; nothing else differs.",)
    found = proof(faithful(trained, chat=CHATML.replace("\n", " ")), tmp_path / "both", template=trained)
    assert found.problems[0].startswith(
        "The file's own template and tokenizer produce other tokens than training for 30"
    )
    assert found.problems[1] == "30 of 30 prompts lack the start token that training had."


def test_the_first_unlike_rows_are_shown_around_the_difference(template: Template) -> None:
    class Typo(Fake):
        def render(self, turns: Sequence[Turn]) -> str:
            return super().render(turns).replace("of r2", "of  r2")

    found = compare_prompts(template, ROWS, Typo(template))
    assert (found.unlike, found.rows) == (11, 30)  # r2 and r20 to r29
    first = found.shown[0]
    assert [each.row for each in found.shown] == ["r2", "r20", "r21"]
    assert first.ours == "<|im_start|>user\nwhat of r2?<|im_end|>\n<|im_start|>assistant\n"
    assert first.theirs == "<|im_start|>user\nwhat of  r2?<|im_end|>\n<|im_start|>assistant\n"
    assert template.tokenizer.decode(first.our_tokens[:2]) == "r2"
    assert template.tokenizer.decode(first.their_tokens[:2]) == " r"

    trained = replace(template, text=START)  # the start token that a runtime takes off is no difference
    (first, *_) = compare_prompts(trained, ROWS, Typo(template, adds=1)).shown
    assert first.ours.startswith("<|im_start|>user\nwhat of r2?") and first.theirs.startswith(
        "<|im_start|>user\nwhat of  "
    )

    class Cuts(Fake):
        def tokens(self, text: str) -> list[int]:
            return [*super().tokens(text)[:7], 9, *super().tokens(text)[8:]]

    (first, *_) = compare_prompts(template, ROWS, Cuts(template)).shown
    assert first.ours == first.theirs
    assert (first.place, first.their_tokens[0]) == (7, 9)


# --- given answers ------------------------------------------------------------------------------------------


def buckets(p: np.ndarray, q: np.ndarray, alone: Sequence[int]) -> float:
    """KL of two distributions, in float64, when the tokens outside `alone` are one, of 1e-6 at least."""
    rest = [n for n in range(len(p)) if n not in alone]
    pairs = [(p[n], q[n]) for n in alone] + ([(p[rest].sum(), max(q[rest].sum(), 1e-6))] if rest else [])
    return float(sum(a * math.log(a / b) for a, b in pairs))


def of(logs: np.ndarray, kept: int, given: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.argsort(-logs)[:kept]
    if given not in ids:
        ids[-1] = given
    return ids.astype(np.int32), logs[ids].astype(np.float32)


def told(logs: np.ndarray, top: int, given: int) -> TokenScore:
    return TokenScore(given, -float(logs[given]), tuple((int(n), float(logs[n])) for n in np.argsort(-logs)[:top]))


@pytest.mark.parametrize("top", [1, 8, 64, VOCABULARY])
@pytest.mark.parametrize("noise", [0.01, 1.0, 5.0])
def test_a_divergence_is_that_of_the_told_tokens_and_never_more_than_the_true_one(top: int, noise: float) -> None:
    for n in range(20):
        a, b = thoughts([n]), thoughts([n], noise)
        p, q = np.exp(a), np.exp(b)
        found = divergence(*of(a, VOCABULARY, n), told(b, top, n))
        alone = sorted({n, *np.argsort(-b)[:top].tolist()})
        assert found == pytest.approx(buckets(p, q, alone), abs=3e-6)
        assert found <= buckets(p, q, range(VOCABULARY)) + 3e-6
        few = divergence(*of(a, 32, n), told(b, top, n))  # of the adapter only the likeliest are known
        assert few <= found + 3e-6
        assert few >= buckets(p, q, sorted({n, *np.argsort(-b)[:top].tolist()} & set(of(a, 32, n)[0].tolist()))) - 3e-6


def test_models_that_have_no_likely_token_in_common_are_far_apart() -> None:
    a = np.full(VOCABULARY, -14.0)
    b = a.copy()
    a[:10], b[10:20] = math.log(0.0999), math.log(0.0999)
    a, b = (each - np.logaddexp.reduce(each) for each in (a, b))
    found = divergence(*of(a, 12, 250), told(b, 12, 250))
    exact = buckets(np.exp(a), np.exp(b), range(VOCABULARY))
    assert exact > 8
    assert 4 < found < exact
    assert math.isnan(divergence(*of(a, 12, 3), TokenScore(3, math.nan, told(b, 12, 3).top)))
    assert math.isfinite(divergence(*of(a, 12, 3), TokenScore(3, math.inf, ((4, 0.0), (5, -math.inf)))))


def test_perplexity_agreement_and_divergence_are_those_of_the_distributions(template: Template) -> None:
    some = examples(PARTS, template, learn="answer", limit=5, seed=1)
    assert [each.row for each in some] == [
        each.row for each in examples(PARTS, template, learn="answer", limit=5, seed=1)
    ]
    found = compare_likelihoods(known_of(some), Fake(template, noise=1.5), some)
    tables = [
        (thoughts(each.ids[:n]), thoughts(each.ids[:n], 1.5), each.ids[n])
        for each in some
        for n, learnt in enumerate(each.loss_mask)
        if learnt
    ]
    assert found.tokens == len(tables) == sum(sum(each.loss_mask) for each in some)
    assert found.adapter == pytest.approx(math.exp(-np.mean([a[n] for a, _, n in tables])))
    assert found.file == pytest.approx(math.exp(-np.mean([b[n] for _, b, n in tables])))
    assert found.agreement == pytest.approx(np.mean([a.argmax() == b.argmax() for a, b, _ in tables]))
    apart = [buckets(np.exp(a), np.exp(b), sorted({n, *np.argsort(-b)[:64].tolist()})) for a, b, n in tables]
    assert found.divergence == pytest.approx(np.mean(apart), abs=3e-6)
    assert found.divergence_most == pytest.approx(max(apart), abs=3e-6)
    assert found.losses[some[1].row] == pytest.approx(
        -np.mean(
            [thoughts(some[1].ids[:n], 1.5)[some[1].ids[n]] for n, learnt in enumerate(some[1].loss_mask) if learnt]
        )
    )


def test_two_tokens_that_are_equally_likely_agree(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    example = Example("a", (5, 6), (False, True), 6)
    logs = np.array([[math.log(0.4), math.log(0.4), math.log(0.2)]], np.float32)
    for best, agrees in [(6, 1.0), (7, 1.0), (8, 0.0), (9, 0.0)]:
        runtime = Fake(template)
        score = TokenScore(6, 1.0, ((best, -0.5),))
        monkeypatch.setattr(runtime, "scores", lambda *_, score=score, **options: iter([score]))
        known = Reference("a", np.array([6]), np.array([0.9]), np.array([[7, 6, 8]]), logs)
        assert compare_likelihoods([known], runtime, [example]).agreement == agrees


# --- what is kept of the gain -------------------------------------------------------------------------------

GROUPS = [f"t{n // 3}" for n in range(30)]


def test_a_share_by_hand() -> None:
    base, adapter, file = [0.1, 0.2, 0.3, 0.2], [0.5, 0.6, 0.8, 0.5], [0.4, 0.6, 0.7, 0.5]
    found = gain_share(base, adapter, file, ["a", "a", "b", "c"], better="higher", seed=1)
    assert found.share == pytest.approx((2.2 - 0.8) / (2.4 - 0.8))
    assert found.low is not None and found.high is not None and found.share is not None
    assert found.low < found.share < found.high <= 1.0
    assert found.drop is not None and found.drop.difference == pytest.approx(-0.05)
    low_base, low_adapter, low_file = ([-x for x in scores] for scores in (base, adapter, file))
    mirrored = gain_share(low_base, low_adapter, low_file, ["a", "a", "b", "c"], better="lower", seed=1)
    assert (mirrored.share, mirrored.low, mirrored.high) == pytest.approx((found.share, found.low, found.high))
    better = gain_share(base, adapter, [1.0, 1.0, 1.0, 1.0], ["a", "a", "b", "c"], better="higher", seed=1)
    assert better.share == pytest.approx((4 - 0.8) / 1.6)
    logs = [[math.log(x) for x in scores] for scores in (adapter, base, [0.3, 0.3, 0.3, 0.3])]
    folded = gain_share(logs[0], logs[1], logs[2], ["a", "a", "b", "c"], better="lower", seed=1, fold="exp")
    b, a = np.exp(np.mean(logs[0])), np.exp(np.mean(logs[1]))
    assert folded.share == pytest.approx((0.3 - b) / (a - b))


def kept_of(base: Any, adapter: Any, file: Any, groups: Sequence[str], **how: Any) -> GainShare:
    base_scores, adapter_scores, file_scores = (np.asarray(scores, float).tolist() for scores in (base, adapter, file))
    return gain_share(base_scores, adapter_scores, file_scores, groups, better="higher", **how)


def test_an_interval_is_that_of_slow_resamples() -> None:
    rng = np.random.default_rng(3)
    base, gain, loss = rng.normal(size=30), rng.normal(1, 0.5, 30), rng.normal(0.1, 0.3, 30)
    found = kept_of(base, base + gain, base + gain - loss, GROUPS, seed=1)
    shares = []
    for _ in range(20_000):
        rows = [3 * g + k for g in rng.integers(0, 10, 10) for k in range(3)]
        shares.append(1 - loss[rows].sum() / gain[rows].sum())
    expected = np.quantile(shares, [0.0085, 0.9915])  # t of 9 degrees of freedom, the spread 10/9 wider
    assert [found.low, found.high] == pytest.approx(expected, abs=0.01)


def test_the_interval_holds_the_truth() -> None:
    rng, covered, runs = np.random.default_rng(5), 0, 120
    groups = [f"g{n // 2}" for n in range(60)]
    for seed in range(runs):
        topic = np.repeat(rng.normal(0, 0.2, 30), 2)
        base = rng.normal(0, 1, 60)
        adapter = base + 1.0 + topic + rng.normal(0, 0.5, 60)
        file = adapter - 0.1 + np.repeat(rng.normal(0, 0.2, 30), 2) + rng.normal(0, 0.3, 60)  # keeps 90 %
        share = kept_of(base, adapter, file, groups, seed=seed)
        assert share.low is not None and share.high is not None
        covered += share.low <= 0.9 <= share.high
    assert 0.90 <= covered / runs <= 0.99


def test_no_gain_no_share() -> None:
    noise = np.random.default_rng(1).normal(size=30)
    assert kept_of(noise, noise + 1, noise + 1, GROUPS, seed=1).share == 1.0
    for adapter in (-noise, noise - 1):
        found = kept_of(noise, adapter, adapter, GROUPS, seed=1)
        assert found.share is None and "the adapter's own gain is not above zero (difference " in found.reason
        assert found.drop is not None and found.drop.difference == 0
    one = kept_of(noise, noise + 1, noise + 1, ["g"] * 30, seed=1)
    assert one.share is None and "in one group" in one.reason
    assert kept_of([], [], [], [], seed=1).reason == "no row has it for base, adapter and file"


def test_resamples_without_gain_count_against_both_ends() -> None:
    base, adapter = [0.0] * 4, [3.0, 0.5, -2.0, 0.5]
    sure = gain_share([0.0] * 9, [1.0, 1.1, 1.2] * 3, [1.0] * 9, [""] * 9, better="higher", seed=1).drop
    assert sure is not None
    gain = replace(sure, difference=1.0, low=0.5, high=1.5)
    found = gain_share(base, adapter, adapter, list("abcd"), better="higher", seed=1, gain=gain)
    assert found.share == 1.0
    assert (found.low, found.high) == (None, None)
    assert json.dumps(found.describe(), allow_nan=False)
    few = gain_share([0.0], [-1.0], [-1.0], ["a"], better="higher", seed=1, gain=gain)
    assert few.share is None and few.reason == "the adapter gains nothing on the 1 rows that were scored"


# --- a real file --------------------------------------------------------------------------------------------

WORDS = 12


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Template]:
    """A random llama that says ASCII alone, with an adapter: our model, transformers' merged one, the template."""
    folder = make_model(tmp_path_factory.mktemp("speaker"), tie_word_embeddings=False)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    names = make_tokenizer().convert_ids_to_tokens(range(VOCABULARY))
    with torch.no_grad():
        merged.lm_head.weight[[n for n, piece in enumerate(names) if n != 4 and not sayable(piece)]] = 0.0
    merged.save_pretrained(folder)
    ours = load_model(fetch_weights(str(folder)), bits=16, device="cpu", precision="float32")
    add_adapter(ours, rank=4, alpha=8, layers="all", dropout=0.3, seed=1)
    source, modules = torch.Generator().manual_seed(2), dict(merged.named_modules())
    with torch.no_grad():
        for name, layer in ours.lora.items():
            layer.lora_B.normal_(std=0.2, generator=source)
            modules[name].weight += 2.0 * layer.lora_B @ layer.lora_A
    return ours, merged, load_template(load_tokenizer(folder), "model", folder)


def test_reference_scores_are_those_of_float64(tuned: tuple[Any, Any, Template]) -> None:
    ours, merged, template = tuned
    two = Conversation("two", (*ROWS[0].turns, *ROWS[1].turns), Origin("f", 1))
    some = [encode(each, template) for each in (ROWS[3], two)]
    text = WeightsModel(ours, template, tuned=True)
    ours.network.train()
    for example, whole, few in zip(
        some, reference_scores(text, some), reference_scores(text, some, top=5), strict=True
    ):
        with torch.inference_mode():
            table = merged.double()(torch.tensor([example.ids]), use_cache=False).logits[0].log_softmax(-1).numpy()
        places = [n for n, learnt in enumerate(example.loss_mask) if learnt]
        assert whole.tokens.tolist() == [example.ids[n] for n in places]
        assert whole.ids.shape == (len(places), VOCABULARY)
        for n, token, nats, ids, logs in zip(places, whole.tokens, whole.nats, whole.ids, whole.logs, strict=True):
            assert nats == pytest.approx(-table[n - 1, token], abs=2e-5)
            assert logs == pytest.approx(table[n - 1, ids], abs=2e-5)
            assert (np.diff(logs) <= 0).all()
        assert all(token in ids for token, ids in zip(few.tokens, few.ids, strict=True))
        assert (few.ids[:, :4] == whole.ids[:, :4]).all()
        assert [float(x.nats.mean()) for x in reference_scores(text, [example])] == pytest.approx(
            answer_losses(text, [[ROWS[3], two][some.index(example)]], learn="answer"), abs=1e-5
        )
    off = reference_scores(replace_tuned(text), some[:1])[0]
    assert np.abs(off.nats - reference_scores(text, some[:1])[0].nats).max() > 0.1
    merged.float()


def replace_tuned(text: WeightsModel) -> WeightsModel:
    return WeightsModel(text.model, text.template, tuned=False)


def test_a_file_in_its_own_runtime(tuned: tuple[Any, Any, Template], tmp_path: Path) -> None:
    ours, merged, template = tuned
    tested, plain = WeightsModel(ours, template, tuned=True), WeightsModel(ours, template, tuned=False)
    how: dict[str, Any] = {"max_new_tokens": WORDS, "batch": 16, "losses": None, "on_progress": lambda done, of: None}
    first = generate_replies(tested, PARTS, **how)
    learnt = {each.id: each.reply.text for each in first}
    rows = [replace(each, turns=(each.turns[0], Turn("assistant", learnt[each.id] or "hm"))) for each in ROWS]
    parts = {"test": rows[:20], "unseen": rows[20:]}
    some = examples(parts, template, learn="answer", limit=3, seed=7)
    more: dict[str, Any] = {
        "parts": parts, "rows": rows, "template": template,
        "base": generate_replies(plain, parts, **how), "adapter": first,
        "examples": some, "reference": reference_scores(tested, some),
        "evaluate": Evaluate(metrics=[NamedSetting("rouge", {})], primary="rougeL", max_new_tokens=WORDS),
    }  # fmt: skip

    def proven(path: Path, name: str) -> Verification:
        with opened(path) as runtime:
            assert isinstance(runtime, GgufModel)
            return proof(runtime, tmp_path / name, exact=True, **more)

    found = proven(write_model(tmp_path / "whole.gguf", merged), "whole")
    assert found.problems == ()
    assert found.replies.identical >= 29  # keys and values are kept in float16
    assert found.likelihood.agreement >= 0.97
    assert found.likelihood.divergence_most < 1e-3
    assert found.likelihood.file == pytest.approx(found.likelihood.adapter, rel=2e-3)
    assert found.share.share is not None and found.share.share >= 0.995
    assert found.facts.rate > 0 and found.facts.file_bytes > 100_000

    weights = merged.state_dict()
    one, other = (weights[f"model.layers.{n}.mlp.up_proj.weight"] for n in (0, 1))
    kept = one.clone()
    with torch.no_grad():
        one.copy_(other)
        other.copy_(kept)
    broken = proven(write_model(tmp_path / "swapped.gguf", merged), "swapped")
    assert not broken.verified
    assert any("likeliest token is the adapter's" in each for each in broken.problems)
    assert any("of the adapter's gain on 'rougeL'" in each and "detectably worse" in each for each in broken.problems)
