"""What can be wrong with rows: one file a check, its first words the page about it.

Each defines `look(rows, context)`, which yields findings; keyword-only parameters are the options a recipe may give,
and `do` is what is proposed for the rows found: keep, repair, quarantine or drop. A check proposes; `prepare` acts
and counts. `SCOPE` says what it needs to see: 'row' (each row alone, so that portions can be looked at side by side),
'table' (all rows), or 'split' (all rows, after the split).
"""
