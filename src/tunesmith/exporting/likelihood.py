"""What a file makes of given texts: the tokens it cuts prompts into, and how likely it finds answers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import dropwhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.data.conversation import Conversation
from tunesmith.errors import ModelError, RunError
from tunesmith.evaluation.comparison import sample_rows
from tunesmith.exporting.job import Runtime
from tunesmith.generation.from_weights import WeightsModel
from tunesmith.generation.text_model import TokenScore
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import Example, Learn, encode_expanded, encode_prompt

SHOWN = 3  # rows of unlike tokens that are told with their texts
AROUND = 40  # characters before and behind the first difference
BEGINNING = 8  # tokens told from the first unlike one on
TOP = 64  # likeliest tokens that a runtime is asked for at each place
KEPT = 4096  # likeliest tokens kept of the adapter at each place: 32 KiB
CHUNK = 64  # places whose log-probabilities are made at once: 64 MB at a vocabulary of 256k
ROUNDING = 1e-6  # what is left of a sum of float32 probabilities is known to about so much
LEAST = -690.0  # ln p below which a probability is as good as none: e^-690 is 1e-300, near float64's end

Tell = Callable[[int, int], None]


def _silent(done: int, of: int) -> None:
    """Tells nobody."""


def _finite(value: float | None) -> float | None:
    """None for what JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None


# --- prompts as tokens ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unlike:
    """A prompt that becomes other tokens than in training, by what stands around the first difference.

    `place` is the first unlike token's, `ours` and `theirs` are parts of the rendered texts, the tokens begin at
    `place`. `refusal` says why the runtime did not render it at all; the rest is empty then.
    """

    row: str
    place: int
    ours: str
    theirs: str
    our_tokens: tuple[int, ...]
    their_tokens: tuple[int, ...]
    refusal: str = ""


@dataclass(frozen=True)
class Prompts:
    """How many of `rows` prompts become other tokens than in training, the first of them, and what is wrong with BOS.

    The last four count rows: training begins with the start token and the file does not; the file begins with two;
    the file begins with one where training has none; nothing but the start token differs.
    """

    rows: int
    unlike: int
    shown: tuple[Unlike, ...]
    bos_missing: int
    bos_doubled: int
    bos_added: int
    bos_alone: int

    def describe(self) -> dict[str, Any]:
        """Plain values for export.json."""
        return {**asdict(self), "shown": [asdict(each) for each in self.shown]}


def conversations(template: Template, rows: Sequence[Conversation], runtime: Runtime, tell: Tell = _silent) -> Prompts:
    """Whether the runtime, with the file's own template, reads each row's prompt as the tokens that training used.

    Tokens decide: those of the rendered text as the runtime cuts it (what a server does with a chat) against
    `encode_prompt`, one by one. Texts alone may differ: where the file says that its tokenizer adds the start token,
    llama.cpp takes a written one off the text and puts it back while cutting. What training used is right: a template
    that writes no start token wants a file that adds none. A conversation that the runtime refuses counts as unlike.
    """
    others: list[Unlike] = []
    starts: list[Unlike] = []
    unlike = alone = 0
    begins = {"missing": 0, "doubled": 0, "added": 0}
    for done, row in enumerate(rows, start=1):
        ours = encode_prompt(row.prompt, template)
        try:
            text = runtime.render(row.prompt)
            theirs = runtime.tokens(text)
        except ModelError as error:
            unlike += 1
            others += [Unlike(row.id, 0, "", "", (), (), str(error))] if len(others) < SHOWN else []
            continue
        start = template.tokenizer.bos_token_id
        if fault := _beginning(ours, theirs, start):
            begins[fault] += 1
        if ours != theirs:
            unlike += 1
            only = _without_start(ours, start) == _without_start(theirs, start)
            alone += only
            found = starts if only else others
            found += [_unlike(row, ours, theirs, text, template)] if len(found) < SHOWN else []
        tell(done, len(rows))
    shown = tuple([*others, *starts][:SHOWN])
    return Prompts(len(rows), unlike, shown, begins["missing"], begins["doubled"], begins["added"], alone)


def _without_start(ids: Sequence[int], start: int | None) -> list[int]:
    return list(dropwhile(lambda token: token == start, ids))


def _beginning(ours: Sequence[int], theirs: Sequence[int], start: int | None) -> str:
    """What is wrong with the start tokens at a prompt's beginning; empty when nothing is."""
    if start is None:
        return ""
    wanted, has = (next((n for n, token in enumerate(ids) if token != start), len(ids)) for ids in (ours, theirs))
    if has >= wanted:
        return "" if has == wanted else "added" if has == 1 else "doubled"
    return "missing"


def _unlike(row: Conversation, ours: list[int], theirs: list[int], text: str, template: Template) -> Unlike:
    place = _first_difference(ours, theirs)
    start = template.tokenizer.bos_token or ""
    own, other = template.render(row.prompt, generate=True).removeprefix(start), text.removeprefix(start)
    at = _first_difference(own, other) if own != other else len(template.tokenizer.decode(ours[:place]))
    around = slice(max(0, at - AROUND), at + AROUND)
    end = place + BEGINNING
    return Unlike(row.id, place, own[around], other[around], tuple(ours[place:end]), tuple(theirs[place:end]))


def _first_difference(one: Sequence[Any], other: Sequence[Any]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


# --- answers token by token -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """What the adapter thinks of an example's learnt tokens: `tokens` and their `nats`, [places] each.

    `ids` and `logs` [places, kept] are the likeliest tokens with ln p, the likeliest first. The learnt token itself is
    always among them, as the last where it is not one of the likeliest.
    """

    row: str
    tokens: NDArray[np.int32]
    nats: NDArray[np.float32]
    ids: NDArray[np.int32]
    logs: NDArray[np.float32]


@dataclass(frozen=True)
class Likelihood:
    """A file beside the adapter on the learnt tokens of a few rows' own answers.

    `adapter` and `file` are perplexities over all `tokens`, `agreement` is the share of places where the file's
    likeliest token is the adapter's, `divergence` and `divergence_most` are mean and most of a lower bound of
    KL(adapter || file) in nats (see `divergence`). `losses` has the file's mean nats a token by row. `broken` places
    have no finite figure: where there are any, and where there are no tokens, figures are nan or infinite.
    """

    rows: int
    tokens: int
    adapter: float
    file: float
    agreement: float
    divergence: float
    divergence_most: float
    broken: int
    losses: Mapping[str, float]

    def describe(self) -> dict[str, Any]:
        """Plain values for export.json."""
        plain = {key: _finite(value) if isinstance(value, float) else value for key, value in vars(self).items()}
        return {**plain, "losses": {row: _finite(value) for row, value in self.losses.items()}}


def examples(
    parts: Mapping[str, Sequence[Conversation]], template: Template, *, learn: Learn, limit: int, seed: int
) -> list[Example]:
    """At most `limit` rows with an answer of their own, drawn as replies' rows are, as tokens."""
    answered = {part: [row for row in rows if row.answer.strip()] for part, rows in parts.items()}
    rows = [row for rows in sample_rows(answered, limit, seed).values() for row in rows]
    return [encode_expanded(row, template, learn, "auto")[-1][1] for row in rows]


def reference_scores(text: WeightsModel, examples: Sequence[Example], *, kept: int = KEPT) -> list[Reference]:
    """What a loaded model, its adapter on or off as `text` has it, thinks of each example's learnt tokens.

    One forward pass an example through the network itself; its scores become log-probabilities in float32.
    """
    text.model.network.eval()
    off = contextlib.nullcontext() if text.tuned else text.model.base()
    with torch.inference_mode(), off:
        return [_reference(text, example, kept) for example in examples]


def _reference(text: WeightsModel, example: Example, kept: int) -> Reference:
    device, places = text.model.device, _learnt(example)
    wanted = torch.tensor(places, device=device)
    ids = torch.tensor([example.ids], device=device)
    scores = text.model.network(input_ids=ids, use_cache=False, logits_to_keep=wanted - 1).logits[0]
    starts = range(0, len(places), CHUNK)
    found = [_kept(scores[at : at + CHUNK], ids[0, wanted[at : at + CHUNK]], kept) for at in starts]
    nats, best, logs = (np.concatenate([each[n] for each in found]) for n in range(3))
    tokens = np.array([example.ids[place] for place in places], np.int32)
    return Reference(example.row, tokens, nats, best.astype(np.int32), logs)


def _kept(scores: torch.Tensor, given: torch.Tensor, kept: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of scores [places, vocabulary]: nats of the given tokens, and the likeliest ids with ln p."""
    table = scores.float().log_softmax(-1)
    own = table.gather(1, given[:, None])
    logs, ids = table.topk(min(kept, table.shape[1]))
    absent = (ids != given[:, None]).all(1)
    ids[absent, -1], logs[absent, -1] = given[absent], own[absent, 0]
    return (-own[:, 0]).cpu().numpy(), ids.cpu().numpy(), logs.cpu().numpy()


def _learnt(example: Example) -> list[int]:
    """Places of learnt tokens; nothing stands before the first token that could foretell it."""
    return [place for place, learnt in enumerate(example.loss_mask) if learnt and place]


def likelihoods(
    reference: Sequence[Reference], runtime: Runtime, examples: Sequence[Example], tell: Tell = _silent
) -> Likelihood:
    """Lets the runtime score the examples' learnt tokens, beside the adapter's `reference` scores of them.

    The file agrees at a place when the adapter finds no token likelier than the file's likeliest. Raises RunError when
    the reference is of other tokens.
    """
    ours, theirs, same, apart, losses = list[float](), list[float](), list[bool](), list[float](), dict[str, float]()
    for done, (known, example) in enumerate(zip(reference, examples, strict=True), start=1):
        scored = _scored(runtime, example)
        if [each.token for each in scored] != known.tokens.tolist():
            what, advice = "the adapter's scores are of other tokens", "Make them for the same rows and template"
            raise RunError(what, where=f"row '{example.row}'", next=advice)
        ours += known.nats.tolist()
        theirs += [each.nats for each in scored]
        losses[example.row] = float(np.mean([each.nats for each in scored])) if scored else math.nan
        for each, ids, logs in zip(scored, known.ids, known.logs, strict=True):
            same.append(bool(each.top) and bool((logs[ids == each.top[0][0]] >= logs[0]).any()))
            apart.append(divergence(ids, logs, each))
        tell(done, len(examples))
    return Likelihood(
        len(examples), len(ours), _perplexity(ours), _perplexity(theirs), _mean(same), _mean(apart),
        max(apart) if np.isfinite(apart).all() and apart else math.nan,
        sum(not (math.isfinite(nats) and math.isfinite(kl)) for nats, kl in zip(theirs, apart, strict=True)), losses,
    )  # fmt: skip


def _scored(runtime: Runtime, example: Example) -> list[TokenScore]:
    """What the runtime thinks of the learnt tokens; those behind the last of them are not asked for."""
    places = _learnt(example)
    if not places:
        return []
    found = list(runtime.scores(example.ids[: places[-1] + 1], start=places[0], top=TOP))
    return [found[place - places[0]] for place in places]


def divergence(ids: NDArray[np.int32], logs: NDArray[np.float32], told: TokenScore) -> float:
    """At least KL(adapter || file) at one place, in nats: the adapter's known `ids` with ln p, and what the file told.

    Tokens known of both stand alone; all others fall into two buckets, those that only the file told and the rest.
    Putting outcomes into buckets never raises a divergence (the data processing inequality; by the log-sum inequality
    for one bucket: Cover & Thomas 2006, theorem 2.7.1 and section 2.8), so the true one is as large or larger. How the
    adapter divides what is left between the buckets is known only in so far as the first holds no more than what it
    gives to tokens unknown here: of all such divisions the one of the least divergence is taken. What the file leaves
    to the rest counts as 1e-6 at least, since float32 knows no less. Exact, but for that, when both sides know the
    whole vocabulary. nan when the file told something that is not a number.
    """
    file = {**dict(told.top), told.token: -told.nats}
    q = np.clip(np.fromiter(file.values(), float, len(file)), LEAST, 0.0)
    _, at, there = np.intersect1d(ids, np.fromiter(file, np.int64, len(file)), return_indices=True)
    p = np.exp(logs.astype(float))
    hidden = float(np.delete(np.exp(q), there).sum())
    rest = max(1.0 - float(np.exp(q).sum()), ROUNDING)
    left = max(1.0 - float(p[at].sum()), 0.0)
    share = min(left * hidden / (hidden + rest), max(1.0 - float(p.sum()), 0.0))
    alone = float((p[at] * (logs[at] - q[there])).sum())
    found = alone + _term(share, hidden) + _term(left - share, rest)
    return found if math.isnan(found) else max(0.0, found)


def _term(p: float, q: float) -> float:
    return p * math.log(p / q) if p > 0 else 0.0


def _perplexity(nats: Sequence[float]) -> float:
    """exp of the mean, infinite beyond float64."""
    with np.errstate(over="ignore"):
        return float(np.exp(_mean(nats)))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
