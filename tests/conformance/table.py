"""The conformance table of docs/api.md: `python -m tests.conformance.table` writes it, a test holds it to the rows."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from tests.conformance.chat import CHAT
from tests.conformance.completions import COMPLETIONS
from tests.conformance.responses import RESPONSES
from tests.conformance.responses_kept import INPUT_ITEMS, RETRIEVE
from tests.conformance.rows import Api, Row
from tests.conformance.tokens import DETOKENIZE, TOKENIZE

# In the order of the table.
APIS: Sequence[Api] = (CHAT, RESPONSES, RETRIEVE, INPUT_ITEMS, COMPLETIONS, TOKENIZE, DETOKENIZE)
DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"
_BEGIN, _END = "<!-- conformance: begin -->\n", "<!-- conformance: end -->\n"


def render() -> str:
    return "\n".join(_section(api) for api in APIS)


def with_table(document: str) -> str:
    """The document with the table as it should be. Errors: ValueError where it has no place for one."""
    before, begin, rest = document.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{_BEGIN.strip()} and {_END.strip()} must mark the place of the table")
    return f"{before}{begin}\n{render()}\n{end}{after}"


def _section(api: Api) -> str:
    lines = [f"### `{api.path}`", "", *_table("parameter", api.parameters, {})]
    if api.events:
        lines += ["", *_table("in a stream", api.events, {"supported": "sent", "ignored": "left out"})]
    return "\n".join(lines) + "\n"


def _table(title: str, rows: Sequence[Row], words: Mapping[str, str]) -> list[str]:
    """`words`: what standings are called here, if they have other names."""
    lines = [f"| {title} | of it | is | |", "|---|---|---|---|"]
    # Neighbours that say the same of several values share a line.
    for (name, standing, note), alike in groupby(rows, lambda row: (row.name, row.standing, row.note)):
        values = ", ".join(row.values for row in alike)
        lines.append(f"| `{name}` | {values} | {words.get(standing, standing)} | {note} |")
    return [line.replace("|  |", "| |").replace("|  |", "| |") for line in lines]


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
