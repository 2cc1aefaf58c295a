"""Schemas, regular expressions and grammars made to explode: refused or kept to, in bounded time, beside other work."""

import concurrent.futures
import re
import time
from typing import Any

import pytest
from tests.integration.cluster import Cluster
from tests.support.client_texts import assert_tells_nothing_of_the_inside

pytestmark = pytest.mark.slow

# Far above what any of them takes, and far below what those that explode would.
LIMIT_S = 20.0
NESTED: dict[str, Any] = {"type": "string"}
for _ in range(60):
    NESTED = {"type": "object", "properties": {"a": NESTED}, "required": ["a"]}

FORMS: dict[str, dict[str, Any]] = {
    "backtracking": {"structured_outputs": {"regex": "(a+)+b"}},
    "nested repeats": {"structured_outputs": {"regex": "((a{1,200}){1,200}){1,200}"}},
    "a long repeat": {"structured_outputs": {"regex": "a{1,1000000}"}},
    "many states": {"structured_outputs": {"regex": "(a|b)*a(a|b){40}"}},
    "an open group": {"structured_outputs": {"regex": "((((("}},
    "a lookahead": {"structured_outputs": {"regex": "(?=a)b"}},
    "a backreference": {"structured_outputs": {"regex": r"(a)\1"}},
    "an endless grammar": {"structured_outputs": {"grammar": "start: start"}},
    "an empty grammar": {"structured_outputs": {"grammar": ""}},
    "no such rule": {"structured_outputs": {"grammar": "start: nowhere"}},
    "a chain in EBNF": {
        "structured_outputs": {"grammar": "".join(f"a{i}::=a{i + 1}\n" for i in range(1200)) + 'a1200::="a"\nroot::=a0'}
    },
    "nested EBNF": {"structured_outputs": {"grammar": f'root ::= {"(" * 4000}"a"{")" * 4000}'}},
    "much EBNF": {"structured_outputs": {"grammar": "root ::= " + '"a" ' * 50_000}},
    "a recursive schema": {"structured_outputs": {"json": {"$ref": "#"}}},
    "a loop of references": {
        "structured_outputs": {
            "json": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
        }
    },
    "a reference elsewhere": {"structured_outputs": {"json": {"$ref": "https://example.com/schema.json"}}},
    "a deep schema": {"structured_outputs": {"json": NESTED}},
    "a wide schema": {"structured_outputs": {"json": {"enum": [f"value {i}" for i in range(20_000)]}}},
    "all combinations": {
        "structured_outputs": {
            "json": {"allOf": [{"anyOf": [{"multipleOf": i + 2}, {"minimum": i}]} for i in range(30)]}
        }
    },
    "a pattern in a tool": {
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "strict": True,
                    "parameters": {
                        "type": "object",
                        "properties": {"a": {"type": "string", "pattern": "^(x+x+)+y$"}},
                        "required": ["a"],
                        "additionalProperties": False,
                    },
                },
            }
        ]
    },
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_it_holds_nobody_up(demo_cluster: Cluster, form: dict[str, Any]) -> None:
    body = {
        "model": "chorus-demo",
        "messages": [{"role": "user", "content": "What is 17 + 25?"}],
        "temperature": 0,
        "max_completion_tokens": 64,
    }
    with demo_cluster.client() as client, concurrent.futures.ThreadPoolExecutor() as pool:
        began = time.monotonic()
        hostile = pool.submit(client.post, "/v1/chat/completions", json=body | form, timeout=LIMIT_S)
        time.sleep(0.05)
        beside = client.post("/v1/chat/completions", json=body, timeout=LIMIT_S).json()
        assert beside["choices"][0]["message"]["content"] == "17 + 25 = 42"
        response = hostile.result()
        assert time.monotonic() - began < LIMIT_S
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        error = response.json()["error"]
        assert error["code"] == "invalid_value"
        assert not re.search(r"\b[A-Z][a-z]+[A-Z]", error["message"]), "a name of the library's own"
        assert error["param"].startswith("structured_outputs.")
        assert_tells_nothing_of_the_inside(error["message"])
