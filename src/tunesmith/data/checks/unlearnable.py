"""Rows that the model's chat template cannot render so that every answer is trained on in full.

Why it hurts: a template may reject a system message, leave out or change an answer's text, or have no place for its
reasoning. The model would then be trained on something other than the row, or on a part of it.

Example: a row with reasoning, while the generation prompt ends with an empty thought (`enable_thinking: false`).

What to do: follow the reason in each finding: set `prompt.reasoning` to drop, change `prompt.template_options` or
`prompt.template`, or remove the quoted token from the row. The rows are left out. This check always runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding, Proposal, row_finding

SCOPE = "table"  # only this process has the tokenizer


def find_defects(rows: Sequence[Conversation], context: CheckContext, *, do: Proposal = "drop") -> Iterator[Finding]:
    """Yields rows that cannot be trained on under the template, each with the reason; nothing without a template."""
    for row in rows if context.refusal else ():
        if context.refusal and (reason := context.refusal(row)):
            yield row_finding("unlearnable", row, reason, do)
