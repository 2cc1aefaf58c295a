#!/bin/sh
# Writes the Python code of every .proto file into the folder given, or over the committed code.
set -eu
cd "$(dirname "$0")"
out="${1:-.}"
exec "${PYTHON:-python3}" -m grpc_tools.protoc -I. \
  --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
  chorus_protos/v1/*.proto chorus_protos/vllm/*.proto
