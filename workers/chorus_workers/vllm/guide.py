"""Constraints of vLLM's protocol as guides."""

from chorus_protos.v1 import engine_pb2
from chorus_protos.vllm import vllm_engine_pb2
from chorus_workers.guide.tokenizer import encode_marked
from chorus_workers.vllm.refusals import SAMPLING, invalid
from chorus_workers.vllm.tags import OPENING, TagError, choices, guide_from_tag

MAX_CHOICES = 1024
_ANY_OBJECT = '{"type":"object"}'


def guide_from_vllm(request: vllm_engine_pb2.GenerateRequest) -> engine_pb2.Guide | None:
    """None without a constraint. All but structural tags bind the answer from its first token on, with no markup around
    it. The first structural tag takes a second. Errors: Refused, naming the field."""
    params = request.sampling_params
    kind = params.WhichOneof("constraint")
    if kind is None:
        return None
    if kind == "structural_tag":
        return _tagged(request)
    return engine_pb2.Guide(grammars=[_grammar(params, kind)], messages=[engine_pb2.GuidedMessage(grammar=0)])


def _grammar(params: vllm_engine_pb2.SamplingParams, kind: str) -> engine_pb2.Grammar:
    if kind == "json_schema":
        return engine_pb2.Grammar(json_schema=params.json_schema)
    if kind == "regex":
        return engine_pb2.Grammar(regex=params.regex)
    if kind == "grammar":
        return engine_pb2.Grammar(lark=params.grammar)
    if kind == "json_object":
        if not params.json_object:
            invalid(f"{SAMPLING}.json_object", "must be true, or left out")
        return engine_pb2.Grammar(json_schema=_ANY_OBJECT)
    if not 0 < len(params.choice.choices) <= MAX_CHOICES:
        invalid(f"{SAMPLING}.choice", f"must have 1 to {MAX_CHOICES} choices")
    return engine_pb2.Grammar(lark=choices(params.choice.choices))


def _tagged(request: vllm_engine_pb2.GenerateRequest) -> engine_pb2.Guide:
    params, field = request.sampling_params, f"{SAMPLING}.structural_tag"
    try:
        guide = guide_from_tag(params.structural_tag, from_first_token=params.grammar_from_first_token)
    except TagError as error:
        invalid(field, f"can't be enforced: {error}")
    if guide.opening:
        if params.ignore_eos:
            invalid(f"{SAMPLING}.ignore_eos", "is not served beside a structural_tag, whose tags end tokens end")
        if list(request.tokenized.input_ids[-len(guide.opening) :]) != encode_marked(OPENING):
            invalid("tokenized.input_ids", f"must end with {OPENING} beside a structural_tag, whose tags are headers")
    return guide
