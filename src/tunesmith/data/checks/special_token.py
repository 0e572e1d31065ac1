"""Signs of a chat template inside a row's own text, such as `<|im_end|>`, `[INST]` or `</s>`.

Why it hurts: the tokenizer takes such a sign for the end of a turn or of the text, in training and in use, so the rest
of the row is learnt as something else. Rows with a special token of the recipe's own model cannot be trained at all.

Example: an answer copied from a log, "Tap Save.<|im_end|>".

What to do: take the sign out. Rows found are set aside (quarantine); without this check a special token of the model in
use is an error that names its row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal, of_place, of_row

SCOPE = "row"
KNOWN = re.compile(  # the turn and text marks of ChatML, Llama 2 and 3, Mistral, Gemma, Phi-3 and GPT-2
    r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|end_header_id|begin_of_text|end_of_text|user|assistant|system"
    r"|end)\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|</s>"
)


def look(rows: Sequence[Conversation], context: Context, *, do: Proposal = "quarantine") -> Iterator[Finding]:
    """Every such sign, in any turn: those that are known, and the recipe's model's own."""
    for row in rows:
        for place, turn in enumerate(row.turns):
            found = {match.span(): match for match in KNOWN.finditer(turn.text)}
            found |= {match.span(): match for match in context.specials.finditer(turn.text)} if context.specials else {}
            for span, match in sorted(found.items()):
                message = f"the {turn.role}'s text holds the special token '{match[0]}'"
                yield of_place("special_token", row, place, span, message, do)
            for mark in (KNOWN, context.specials):
                if found_there := mark and mark.search(turn.reasoning):
                    message = f"the {turn.role}'s reasoning holds the special token '{found_there[0]}'"
                    yield of_row("special_token", row, message, do)
                    break
