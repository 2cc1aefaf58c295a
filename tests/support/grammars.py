"""A grammar such as agents send with a tool that edits files: their features, and a reader that isn't the engine's."""

import lark

# An imported terminal, expressions that may be empty, groups, a name for an alternative, and two ways to end.
EDITS = """start: open edit+ close
open: "=== Edits" LF
close: "=== Done" LF?

edit: create | remove | change
create: "=== Create " path LF created+
remove: "=== Remove " path LF
change: "=== Change " path LF rename? lines?

path: /(.+)/
created: "+" /(.*)/ LF -> written
rename: "=== Rename " path LF
lines: (place | changed)+ last?
place: (":" | ": " /(.+)/) LF
changed: ("+" | "-" | " ") /(.*)/ LF
last: "=== End" LF

%import common.LF
"""
SOME_EDITS = "=== Edits\n=== Change a.py\n=== Rename b.py\n: def f():\n-old\n+new\n \n=== Done"
# Lark's own reader has no expressions that may be empty: this is the same.
_READER = lark.Lark(EDITS.replace("/(.*)/", "/(.+)/?"), parser="earley")


def is_edits(text: str) -> bool:
    try:
        _READER.parse(text)
    except lark.exceptions.UnexpectedInput:
        return False
    return True
