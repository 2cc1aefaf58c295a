"""The fast encoder writes what the product's renderer writes, and completions that the product's parser reads."""

import itertools

import pytest
from demo.data import IGNORED, ROW_LENGTH, Packer, make_chunk
from demo.encode import Encoder
from demo.generator import Generator, Split
from demo.product import to_conversation
from demo.sample import Sample
from demo.vocabulary import UNKNOWN, rare_words

from chorus_cluster.harmony.deltas import AnswerDelta, ReasoningDelta, ToolCallArguments, ToolCallStarted
from chorus_cluster.harmony.parser import StreamParser
from chorus_cluster.harmony.render import render


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder()


def drawn(encoder: Encoder, split: Split, count: int) -> list[Sample]:
    return list(itertools.islice(Generator(11, split, rare_words(encoder.encoding)), count))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_prompts_are_those_of_the_product(encoder: Encoder, split: Split) -> None:
    for sample in drawn(encoder, split, 250):
        assert encoder.prompt(sample) == render(to_conversation(sample)), sample


def test_completions_are_well_formed_harmony(encoder: Encoder) -> None:
    for sample in drawn(encoder, "train", 300):
        parser = StreamParser(tool.name for tool in sample.tools)
        deltas = [*parser.feed(encoder.completion(sample.target)), *parser.finish()]
        call = sample.target.tool_call
        assert "".join(d.text for d in deltas if isinstance(d, ReasoningDelta)) == sample.target.reasoning
        assert "".join(d.text for d in deltas if isinstance(d, AnswerDelta)) == sample.target.content
        assert [d.name for d in deltas if isinstance(d, ToolCallStarted)] == ([call.name] if call else [])
        arguments = "".join(d.text for d in deltas if isinstance(d, ToolCallArguments))
        assert arguments == (call.arguments if call else "")
        assert not parser.repairs


def test_chunks_learn_completions_only(encoder: Encoder) -> None:
    samples = drawn(encoder, "train", 40)
    tokens = {token for sample in samples for token in encoder.prompt(sample) + encoder.completion(sample.target)}
    rows = [UNKNOWN, *sorted(tokens)]
    packer = Packer(encoder, rows)
    documents = [document for sample in samples if (document := packer.document(sample)) is not None]
    chunk, packed = packer.pack(iter(documents), 32)
    assert packed == documents and len(documents) == len(samples)
    for (row, number), sample in zip(chunk.order, samples, strict=True):
        inside = chunk.documents[row] == number
        learned = [rows[label] for label in chunk.labels[row][inside] if label != IGNORED]
        assert learned == encoder.completion(sample.target)
        assert [rows[t] for t in chunk.tokens[row][inside]] == encoder.prompt(sample) + learned
        assert list(chunk.positions[row][inside]) == list(range(inside.sum()))


def test_chunks_depend_on_seed_and_index_alone(encoder: Encoder) -> None:
    rows = [UNKNOWN, *range(201_088)]
    rare = rare_words(encoder.encoding)
    first, again, other = (make_chunk(Packer(encoder, rows), rare, 1, index, 2) for index in (5, 5, 6))
    assert first.tokens.shape == (2, ROW_LENGTH)
    assert (first.tokens == again.tokens).all() and (first.labels == again.labels).all()
    assert (first.tokens != other.tokens).any()


def test_what_the_rows_cannot_spell_is_unknown_in_prompts_and_refused_in_completions(encoder: Encoder) -> None:
    sample = drawn(encoder, "train", 1)[0]
    completion = encoder.completion(sample.target)
    packed = Packer(encoder, [UNKNOWN, *sorted(set(completion))]).document(sample)
    assert packed is not None and 0 in packed[0][: packed[1]] and 0 not in packed[0][packed[1] :]
    assert Packer(encoder, [UNKNOWN, *sorted(set(completion))[1:]]).document(sample) is None
