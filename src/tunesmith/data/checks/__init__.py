"""Checks on rows, one per file; the file's docstring is its page in docs/checks.

Each defines `find_defects(rows, context)`, which yields findings. Keyword-only parameters are the options a recipe may
set; `do` is the proposal for the affected rows: keep, repair, quarantine or drop. A check only proposes; `prepare` acts
and counts. `SCOPE` is the input a check needs: 'row' (single rows, so batches can run in parallel), 'table' (all rows),
or 'split' (all rows, after the split). A check that looks inside one text also defines `detect(text)`, which yields its
defects, with a fix where the text determines it; `repair_rows` applies the fixes. Detection is linear in the length of
the text: quantifiers are bounded, or a match can start only once per run. Code (fenced, inline, or the whole text) is
masked first.
"""
