"""What can be wrong inside one text. Each file is a kind of defect: its function takes a text and tells the places.

A catalogue as `find` reads it: the file's and its function's name is the kind's name, keyword-only parameters are its
options. Places count characters from 0. Every function is linear in the text's length: an expression that may run on is
bounded or starts once a run. Code (fenced, inline, or a text that is code throughout) is masked first, so that nothing
in it is a defect; a text too short to judge has none.
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
