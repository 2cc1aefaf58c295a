"""vLLM's token-level protocol as another gateway has it: compiled from a text of its own, apart from ours."""

import tempfile
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

SERVICE = "vllm.grpc.engine.VllmEngine"
# Written from the public description (smg-grpc-proto 0.4.28). `later` fields stand for a newer one's.
PROTO = """
syntax = "proto3";
package vllm.grpc.engine;
message SamplingParams {
  optional float temperature = 1; float top_p = 2; uint32 top_k = 3; float min_p = 4; float frequency_penalty = 5;
  float presence_penalty = 6; float repetition_penalty = 7; optional uint32 max_tokens = 8; uint32 min_tokens = 9;
  repeated string stop = 10; repeated uint32 stop_token_ids = 11; bool skip_special_tokens = 12;
  bool spaces_between_special_tokens = 13; bool ignore_eos = 14; uint32 n = 15;
  oneof constraint {
    string json_schema = 16; string regex = 17; string grammar = 18; string structural_tag = 19; bool json_object = 20;
    ChoiceConstraint choice = 21;
  }
  optional int32 logprobs = 22; optional int32 prompt_logprobs = 23; optional int32 seed = 24;
  bool include_stop_str_in_output = 25; map<int32, float> logit_bias = 26;
  optional int32 truncate_prompt_tokens = 27; bool grammar_from_first_token = 28; bool later = 1000;
}
message ChoiceConstraint { repeated string choices = 1; }
message TokenizedInput { string original_text = 1; repeated uint32 input_ids = 2; }
message KvTransferParams { string remote_host = 1; uint32 remote_port = 2; }
message MultimodalInputs { repeated string mm_hashes = 6; }
message MediaRef { string url = 2; }
message MediaRefs { repeated MediaRef items = 1; }
message GenerateRequest {
  string request_id = 1;
  oneof input { TokenizedInput tokenized = 2; string text = 3; }
  SamplingParams sampling_params = 4; bool stream = 5; KvTransferParams kv_transfer_params = 6;
  MultimodalInputs mm_inputs = 7; optional string kv_transfer_params_json = 8; optional int32 data_parallel_rank = 9;
  MediaRefs media_refs = 10; repeated MultimodalInputs extra_mm_inputs = 11; bool later = 1000;
}
message OutputLogProbs {
  repeated float token_logprobs = 1; repeated uint32 token_ids = 2; repeated TopLogProbs top_logprobs = 3;
}
message TopLogProbs { repeated float values = 1; repeated uint32 token_ids = 2; }
message GenerateResponse { oneof response { GenerateStreamChunk chunk = 1; GenerateComplete complete = 2; } }
message GenerateStreamChunk {
  repeated uint32 token_ids = 1; uint32 prompt_tokens = 2; uint32 completion_tokens = 3; uint32 cached_tokens = 4;
  OutputLogProbs output_logprobs = 5; uint32 index = 7;
}
message GenerateComplete {
  repeated uint32 output_ids = 1; string finish_reason = 2; uint32 prompt_tokens = 3; uint32 completion_tokens = 4;
  uint32 cached_tokens = 5; OutputLogProbs output_logprobs = 6; uint32 index = 8;
  KvTransferParams kv_transfer_params = 9;
  oneof matched_stop { uint32 matched_token_id = 10; string matched_stop_str = 11; }
}
message AbortRequest { repeated string request_ids = 1; }
message AbortResponse {}
message HealthCheckRequest {}
message HealthCheckResponse { bool healthy = 1; string message = 2; }
message GetModelInfoRequest {}
message GetModelInfoResponse {
  string model_path = 1; bool is_generation = 2; uint32 max_context_length = 3; uint32 vocab_size = 4;
  bool supports_vision = 5; string served_model_name = 6; string tokenizer_path = 7; string model_type = 8;
  repeated string architectures = 9; repeated int32 eos_token_ids = 10; int32 pad_token_id = 11;
  int32 bos_token_id = 12; int32 max_req_input_len = 13; string default_sampling_params_json = 14;
}
message GetServerInfoRequest {}
message GetServerInfoResponse {
  uint32 active_requests = 1; bool is_paused = 2; double last_receive_timestamp = 3; double uptime_seconds = 4;
  string server_type = 5; string kv_connector = 6; int32 data_parallel_size = 9; string kv_cache_dtype = 11;
  int32 block_size = 12; int32 max_num_seqs = 20;
}
message GetLoadsRequest { optional int32 dp_rank = 1; repeated string include = 2; }
message GetLoadsResponse {
  string timestamp = 1; string version = 2; int32 dp_rank_count = 3; repeated SchedulerLoad loads = 4;
}
message SchedulerLoad {
  int32 dp_rank = 1; int32 num_running_reqs = 2; int32 num_waiting_reqs = 3; int32 num_total_reqs = 4;
  int32 num_used_tokens = 5; int32 max_total_num_tokens = 6; double token_usage = 7; int32 max_running_requests = 11;
}
"""


class Protocol:
    """The messages by name."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "vllm_engine.proto").write_text(PROTO)
            output = Path(folder) / "descriptors"
            arguments = ["protoc", f"-I{folder}", f"--descriptor_set_out={output}", "vllm_engine.proto"]
            assert protoc.main(arguments) == 0
            (self.file,) = descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes()).file
        pool = descriptor_pool.DescriptorPool()
        pool.Add(self.file)
        self._classes = message_factory.GetMessageClassesForFiles([self.file.name], pool)

    def __getattr__(self, name: str) -> Any:
        return self._classes[f"vllm.grpc.engine.{name}"]


class Stub:
    """Another gateway's client."""

    def __init__(self, channel: Any, messages: Protocol) -> None:
        for name in ("Abort", "HealthCheck", "GetModelInfo", "GetServerInfo", "GetLoads"):
            request, response = (getattr(messages, name + kind) for kind in ("Request", "Response"))
            setattr(self, name, _method(channel.unary_unary, name, request, response))
        self.Generate = _method(channel.unary_stream, "Generate", messages.GenerateRequest, messages.GenerateResponse)


def _method(kind: Any, name: str, request: Any, response: Any) -> Any:
    return kind(
        f"/{SERVICE}/{name}", request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )
