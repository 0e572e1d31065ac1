"""Special tokens of a chat template inside a row's text, such as `<|im_end|>`, `[INST]` or `</s>`.

Why it hurts: the tokenizer takes such a token as the end of a turn or of the text, in training and in use, so the rest
of the row becomes something else. Rows with a special token of the recipe's own model cannot be trained on at all.

Example: an answer copied from a log, "Tap Save.<|im_end|>".

What to do: remove the token. The rows are quarantined; without this check a special token of the recipe's
model is an error that names its row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding, Proposal, row_finding, span_finding

SCOPE = "row"
KNOWN = re.compile(  # special tokens of ChatML, Llama 2 and 3, Mistral, Gemma, Phi-3 and GPT-2
    r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|end_header_id|begin_of_text|end_of_text|user|assistant|system"
    r"|end)\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|</s>"
)


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, do: Proposal = "quarantine"
) -> Iterator[Finding]:
    """Yields every special token in any turn: well-known ones, and those of the recipe's model."""
    for row in rows:
        for turn_index, turn in enumerate(row.turns):
            matches = {match.span(): match for match in KNOWN.finditer(turn.text)}
            matches |= (
                {match.span(): match for match in context.specials.finditer(turn.text)} if context.specials else {}
            )
            for span, match in sorted(matches.items()):
                message = f"the {turn.role}'s text contains the special token '{match[0]}'"
                yield span_finding("special_token", row, turn_index, span, message, do)
            for pattern in (KNOWN, context.specials):
                if reasoning_match := pattern and pattern.search(turn.reasoning):
                    message = f"the {turn.role}'s reasoning contains the special token '{reasoning_match[0]}'"
                    yield row_finding("special_token", row, message, do)
                    break
