"""Detectors of defects inside one text, one kind per file.

A catalog as `find` reads it: a kind is named like its file and function; keyword-only parameters are its options.
Positions count characters from 0. Every function is linear in the length of the text: quantifiers are bounded, or a
match can start only once per run. Code (fenced, inline, or the whole text) is masked first, so nothing in it is a
defect; a text too short to judge has none.
"""

from tunesmith.data.defects._defect import Defect, Severity
from tunesmith.data.defects.broken_whitespace import broken_whitespace
from tunesmith.data.defects.collapsed_list import collapsed_list
from tunesmith.data.defects.machine_tells import machine_tells
from tunesmith.data.defects.markup import markup
from tunesmith.data.defects.mojibake import mojibake
from tunesmith.data.defects.placeholders import placeholders
from tunesmith.data.defects.repetition import repetition
from tunesmith.data.defects.truncated import truncated
from tunesmith.data.defects.wrong_language import Language, wrong_language

__all__ = [
    "Defect",
    "Language",
    "Severity",
    "broken_whitespace",
    "collapsed_list",
    "machine_tells",
    "markup",
    "mojibake",
    "placeholders",
    "repetition",
    "truncated",
    "wrong_language",
]
