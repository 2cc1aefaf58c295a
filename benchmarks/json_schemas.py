"""Which share of a corpus of JSON schemas is served, and whether what is served is kept to.

usage: PYTHONPATH=cluster:workers:kernels:vocabulary:. python -m benchmarks.json_schemas DIR [--note N]

DIR holds files of MaskBench (github.com/guidance-ai/jsonschemabench, maskbench/data): each a JSON object with a
`schema` and `tests`, instances that are known to be valid or not. A schema is served if a request with it would be
admitted. Of those, the matcher is given the text of each instance: an invalid one that it lets through would be a
broken promise; a valid one that it doesn't is a text that the model can't write, mostly since properties come in the
schema's order."""

import argparse
import json
import re
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.results import append, environment

from chorus_cluster.gateway.guide import MAX_GRAMMAR_BYTES
from chorus_cluster.harmony.long_runs import encode_text
from chorus_vocabulary import VOCABULARY_SIZE
from chorus_workers.guide.columns import Columns
from chorus_workers.guide.grammars import GrammarError, Grammars, Matcher
from chorus_workers.guide.spec import Grammar, GrammarKind

_CORPUS = re.compile(r"[A-Za-z]+2?[A-Za-z]*(_(easy|hard|medium|trivial|ultra))?")


@dataclass(slots=True)
class Outcome:
    """What became of one file."""

    corpus: str
    # None: it is served.
    refused: str | None = None
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


@cache
def _grammars() -> Grammars:
    return Grammars(Columns(None, VOCABULARY_SIZE))


def check(path: Path) -> Outcome:
    outcome = Outcome(_CORPUS.match(path.name)[0])  # type: ignore[index]
    content = json.loads(path.read_text())
    source = json.dumps(content["schema"])
    if len(source.encode()) > MAX_GRAMMAR_BYTES:
        outcome.refused = "too large"
        return outcome
    begin = time.perf_counter()
    try:
        matcher = _grammars().compile(Grammar(GrammarKind.JSON_SCHEMA, source)).future.result()
    except GrammarError as error:
        outcome.refused = _class_of(str(error))
    outcome.seconds = time.perf_counter() - begin
    if outcome.refused is None:
        for test in content["tests"]:
            kind = "valid" if test["valid"] else "invalid"
            accepted = _accepts(matcher.copy(), test["data"])
            outcome.counts[f"{kind} {'accepted' if accepted else 'rejected'}"] += 1
            if accepted and not test["valid"]:
                outcome.broken.append(path.name)
    return outcome


def _accepts(matcher: Matcher, instance: Any) -> bool:
    try:
        for token_id in encode_text(json.dumps(instance, ensure_ascii=False)):
            matcher.consume(token_id)
    except GrammarError:
        return False
    return bool(matcher.native.is_accepting())


def _class_of(message: str) -> str:
    """The message without what is one schema's own."""
    return re.sub(r"[0-9]+", "N", re.sub(r"'[^']*'|\"[^\"]*\"(?!\])", "…", message))[:80]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--note", help="what is special about this run; keeps its line")
    options = parser.parse_args()
    # The first grammar of a process waits for the tokenizer.
    with ProcessPoolExecutor(initializer=_warm_up) as pool:
        outcomes = list(pool.map(check, sorted(options.corpus.glob("*.json")), chunksize=20))
    served = [outcome for outcome in outcomes if outcome.refused is None]
    totals = Counter(outcome.corpus for outcome in outcomes)
    counts = sum((outcome.counts for outcome in served), Counter[str]())
    seconds = sorted(outcome.seconds for outcome in outcomes)
    row = {
        "schemas": len(outcomes),
        "served": round(len(served) / len(outcomes), 4),
        "by_corpus": {
            name: round(sum(outcome.corpus == name for outcome in served) / total, 3)
            for name, total in sorted(totals.items())
        },
        "instances": dict(sorted(counts.items())),
        "broken_promises": sorted({name for outcome in served for name in outcome.broken}),
        "compile_ms": {
            "median": round(statistics.median(seconds) * 1e3, 2),
            "p99": round(seconds[int(0.99 * len(seconds))] * 1e3, 2),
            "most": round(seconds[-1] * 1e3, 1),
        },
        "refused": dict(Counter(outcome.refused for outcome in outcomes if outcome.refused).most_common(25)),
    }
    print(json.dumps(row, indent=1))
    if options.note is not None:
        append("json_schemas", environment() | {"note": options.note} | row)


def _warm_up() -> None:
    _grammars().compile(Grammar(GrammarKind.JSON_SCHEMA, "{}")).future.result()


if __name__ == "__main__":
    sys.exit(main())
