"""Each row of the conformance table is shown to hold, none is missing, and docs/api.md has them all."""

import pytest
from tests.conformance.rows import Api, Door, Row
from tests.conformance.table import APIS, DOCUMENT, with_table

ROWS = [
    pytest.param(row, id=f"{api.path} {row.name} {row.values} {row.standing}".replace("`", ""))
    for api in APIS
    for row in (*api.parameters, *api.events)
]


@pytest.mark.parametrize("row", ROWS)
async def test_it_is_as_the_table_says(row: Row) -> None:
    await row.show()


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.path)
def test_nothing_is_missing_and_nothing_is_made_up(api: Api) -> None:
    assert {row.name for row in api.parameters} == api.expected_parameters
    assert {row.name for row in api.events} == api.expected_events
    for parameter, values in api.expected_values.items():
        assert api.named_values(parameter) == values
    for rows in (api.parameters, api.events):
        claims = [(row.name, row.values, row.note) for row in rows]
        assert len(claims) == len(set(claims))


def test_what_is_refused_or_ignored_has_a_reason() -> None:
    for api in APIS:
        for row in (*api.parameters, *api.events):
            assert row.note or row.standing == "supported", row.name


def test_the_document_has_the_table() -> None:
    document = DOCUMENT.read_text()
    assert document == with_table(document), "make conformance writes it"


async def test_a_claim_that_does_not_hold_fails() -> None:
    """Each kind of row, made of a parameter of another kind."""
    door = Door(
        "/v1/chat/completions", {"model": "fake-model", "messages": [{"role": "user", "content": "Hi"}], "seed": 1}
    )
    responses = Door("/v1/responses", {"model": "fake-model", "input": "Hi", "seed": 1})

    async def no() -> bool:
        return False

    false = [
        door.supported("user", no),
        door.sampled("user", 0.5),
        door.sampled("temperature", 0.5, temperature=0.75),
        door.refused("user", "x", "no"),
        door.refused("temperature", 3, "no", param="top_p"),
        door.ignored("temperature", 0.5),
        door.ignored("audio", {}),
        door.sent("usage", {}, lambda event: "usage" in event),
        door.never_sent("usage", lambda event: "usage" in event, "no"),
        # Changes the answer alone; changes more than what the answer repeats of it.
        responses.ignored("include", ["reasoning.encrypted_content"]),
        responses.ignored("text", {"format": {"type": "json_object"}}),
        responses.never_sent("response.created", lambda event: event["type"] == "response.created", "no"),
    ]
    for row in false:
        with pytest.raises((AssertionError, AttributeError)):
            await row.show()
