"""What the loader accepts, and what its refusals name."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from tests.support.checkpoints import Experts, Layout, Shape, random_tensors, write_checkpoint, write_tensors
from torch import Tensor

from chorus_kernels.mxfp4 import unpack_mxfp4
from chorus_workers.model.checkpoint import CheckpointError, load_model
from chorus_workers.model.weights import PackedMatrices, Shard

SHAPE = Shape(num_layers=2, vocab_size=50)
BLOCKS = "model.layers.1.mlp.experts.down_proj_blocks"


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    # Copies: the file that is mapped gets overwritten.
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    write_tensors(folder, tensors)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, SHAPE)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    return str(caught.value)


@pytest.mark.parametrize("layout", ["hugging_face", "original"])
def test_the_layouts_load_alike(tmp_path: Path, layout: Layout) -> None:
    tensors = random_tensors(SHAPE)
    model = load_model(write_checkpoint(tmp_path, SHAPE, layout=layout, num_files=3))
    config = model.config
    assert (config.num_layers, config.windows, config.max_position) == (2, (128, None), 131072)
    layer, name = model.layers[1], "model.layers.1."
    expected = torch.cat([tensors[f"{name}self_attn.{part}_proj.weight"] for part in "qkv"]).float()
    assert torch.equal(layer.qkv, expected)
    assert torch.equal(layer.out, tensors[f"{name}self_attn.o_proj.weight"].float())
    down = unpack_mxfp4(tensors[BLOCKS], tensors[BLOCKS.replace("blocks", "scales")])
    assert torch.equal(layer.down[4], down[4])
    assert model.head is not None and torch.equal(model.head, tensors["lm_head.weight"].float())


def test_transformers_5_rope_parameters_are_read(folder: Path) -> None:
    before = load_model(folder).config.rope
    raw = json.loads((folder / "config.json").read_text())
    raw["rope_parameters"] = raw.pop("rope_scaling") | {"rope_theta": raw.pop("rope_theta")}
    (folder / "config.json").write_text(json.dumps(raw))
    assert load_model(folder).config.rope == before
    assert before.theta == 150000.0 and not before.truncate


def test_large_models_keep_their_experts_packed_and_mapped(folder: Path) -> None:
    model = load_model(folder, unpacked_experts_limit=1000)
    down = model.layers[0].down
    assert isinstance(down, PackedMatrices) and down[3].shape == (SHAPE.hidden_size, SHAPE.intermediate_size)


def test_a_shard_holds_its_share(folder: Path) -> None:
    whole, parts = load_model(folder), [load_model(folder, Shard(rank, 2)) for rank in range(2)]
    for a, b, layer in zip(parts[0].layers, parts[1].layers, whole.layers, strict=True):
        assert torch.equal(torch.cat((a.sinks, b.sinks)), layer.sinks)
        assert torch.equal(torch.cat((a.out, b.out), 1), layer.out)
        q, k, v = 60, 20, 20
        halves = [part.qkv.split((q, k, v)) for part in (a, b)]
        assert torch.equal(torch.cat([torch.cat(pair) for pair in zip(*halves, strict=True)]), layer.qkv)
        assert torch.equal(torch.cat((a.down_bias, b.down_bias)), layer.down_bias)
        assert a.out_bias is not None and b.out_bias is None
    assert parts[0].head is not None and parts[1].head is None


@pytest.mark.parametrize(("size", "what"), [(4, "2 KV heads"), (3, "2 KV heads")])
def test_shards_that_do_not_divide_are_refused(folder: Path, size: int, what: str) -> None:
    with pytest.raises(ValueError, match=f"{size} shards can't share {what}"):
        load_model(folder, Shard(0, size))


def test_experts_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, Shape(num_layers=1, num_experts=5))
    with pytest.raises(ValueError, match="2 shards can't share 5 experts"):
        load_model(folder, Shard(0, 2))


def test_a_missing_folder_or_config(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere' / 'config.json'}: the file is missing"


def test_a_folder_without_tensors(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == f"{folder}: the folder has no *.safetensors files"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size must be a positive integer, not None"),
        ({"vocab_size": "many"}, "vocab_size must be a positive integer, not 'many'"),
        ({"num_key_value_heads": 4}, "num_attention_heads 6 must be a multiple of 4 KV heads"),
        ({"num_experts_per_tok": 7}, "7 experts per token, but the model has 6"),
        ({"layer_types": ["full_attention"]}, "layer_types must have num_hidden_layers = 2 entries"),
        ({"layer_types": ["full_attention", "linear"]}, "layer_types must hold"),
        ({"model_type": "llama"}, "model_type must be 'gpt_oss', not 'llama'"),
        ({"attention_bias": False}, "attention_bias must be True, not False"),
        ({"rope_scaling": 3}, "rope_scaling must be an object"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.rope_type must be 'yarn', not 'linear'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.factor must be a positive number, not None"),
        ({"head_dim": 21}, "head_dim must be even"),
        ({"swiglu_limit": float("inf")}, "swiglu_limit must be a positive number"),
    ],
)
def test_config_refusals_name_the_field(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_config(folder, **changes)
    text = refusal(folder)
    assert text.startswith(str(folder / "config.json")) and message in text


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_config_that_is_no_json_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert str(folder / "config.json") in refusal(folder)


@pytest.mark.parametrize("missing", [BLOCKS, "model.norm.weight", "model.layers.0.self_attn.sinks", "lm_head.weight"])
def test_a_missing_tensor(folder: Path, missing: str) -> None:
    change_tensors(folder, lambda tensors: tensors.pop(missing))
    assert refusal(folder) == f"{folder}: tensor {missing}: the tensor is missing"


@pytest.mark.parametrize("layout", ["hugging_face", "original"])
def test_missing_experts_are_named_as_the_others_are(tmp_path: Path, layout: Layout) -> None:
    names: dict[tuple[Layout, Experts], tuple[str, ...]] = {
        ("hugging_face", "bfloat16"): (BLOCKS.removesuffix("_blocks"),),
        ("hugging_face", "mxfp4"): (BLOCKS, BLOCKS.replace("blocks", "scales")),
        ("original", "bfloat16"): ("block.1.mlp.mlp2_weight",),
        ("original", "mxfp4"): ("block.1.mlp.mlp2_weight.blocks", "block.1.mlp.mlp2_weight.scales"),
    }
    for experts in get_args(Experts):
        folder = write_checkpoint(tmp_path / experts, SHAPE, layout=layout, experts=experts)
        missing = names[layout, experts]
        change_tensors(folder, lambda tensors, missing=missing: [tensors.pop(name) for name in missing])
        assert refusal(folder) == f"{folder}: tensor {missing[0]}: the tensor is missing"


def test_a_mis_shaped_tensor(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({BLOCKS: tensors[BLOCKS][:, 1:].contiguous()}))
    expected = "the shape must be [6, 96, 2, 16], not [6, 95, 2, 16]"
    assert refusal(folder) == f"{folder / 'model.safetensors'}: tensor {BLOCKS}: {expected}"


@pytest.mark.parametrize(
    ("name", "expected"), [(BLOCKS, "uint8"), ("model.norm.weight", "bfloat16 or float16 or float32")]
)
def test_a_tensor_of_the_wrong_dtype(folder: Path, name: str, expected: str) -> None:
    change_tensors(folder, lambda tensors: tensors.update({name: tensors[name].int()}))
    assert refusal(folder).endswith(f"tensor {name}: the dtype must be {expected}, not int32")


def test_a_scale_that_is_not_a_number(folder: Path) -> None:
    name = BLOCKS.replace("blocks", "scales")
    change_tensors(folder, lambda tensors: tensors[name].view(-1)[7:8].fill_(255))
    assert refusal(folder).endswith(f"tensor {name}: a scale is 255, which is not a number")


def test_a_truncated_file_names_the_first_tensor_it_cuts(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    header_size = int.from_bytes(data[:8], "little")
    ends = {
        name: entry["data_offsets"] for name, entry in json.loads(data[8 : 8 + header_size]).items() if name[0] != "_"
    }
    name = "model.layers.1.mlp.router.weight"
    path.write_bytes(data[: 8 + header_size + ends[name][1] - 3])
    assert refusal(folder) == f"{path}: tensor {name}: the file is truncated: the tensor ends 3 bytes past it"


@pytest.mark.parametrize(
    ("size", "message"), [(0, "less than its header"), (5, "less than its header"), (300, "less than")]
)
def test_a_file_cut_in_its_header(folder: Path, size: int, message: str) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    text = refusal(folder)
    assert text.startswith(f"{path}: the file is truncated") and message in text


def test_a_file_that_is_something_else(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(
        (40).to_bytes(8, "little") + b"not a header at all, but forty bytes long" * 3
    )
    assert "damaged" in refusal(folder)


def test_a_sharded_checkpoint_with_a_file_missing_or_cut(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, SHAPE, num_files=3)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    text = refusal(folder)
    assert text.startswith(f"{path}: tensor ") and text.endswith("the tensor ends 1 bytes past it")
    path.unlink()
    text = refusal(folder)
    assert text.startswith(f"{path}: tensor ") and text.endswith(": the file is missing")
    assert index[text.split(": tensor ")[1].split(":")[0]] == path.name


def test_an_index_that_promises_too_much_or_leads_elsewhere(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, SHAPE, num_files=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = next(
        file for file in set(index["weight_map"].values()) if file != index["weight_map"]["model.norm.weight"]
    )
    path.write_text(json.dumps(index))
    assert "tensor model.norm.weight: the tensor is missing, though the index promises it" in refusal(folder)
    index["weight_map"]["model.norm.weight"] = "../other/model.safetensors"
    path.write_text(json.dumps(index))
    assert "must be a name within the folder" in refusal(folder)
    path.write_text("{}")
    assert "weight_map must be an object" in refusal(folder)


COMPACT = Shape(num_layers=2, vocab_size=500, vocabulary_rows=(40, 7, -1, 499, 0))


def test_a_compact_vocabulary(tmp_path: Path) -> None:
    model = load_model(write_checkpoint(tmp_path, COMPACT))
    vocabulary = model.vocabulary
    assert vocabulary.embedding_rows is not None and vocabulary.logit_rows is not None
    assert vocabulary.embedding_rows[[40, 7, 499, 0, 1, 498]].tolist() == [0, 1, 3, 4, 2, 2]
    assert vocabulary.logit_rows[[40, 7, 499, 0, 1]].tolist() == [0, 1, 2, 3, -1]
    assert vocabulary.token_ids.tolist() == [40, 7, 499, 0]
    assert model.head is not None and model.head.shape == (4, 96) and model.embedding.shape == (5, 96)
    head = random_tensors(COMPACT)["lm_head.weight"]
    assert torch.equal(model.head, head[[0, 1, 3, 4]].float())


@pytest.mark.parametrize("rows", [(1, 2, 3), (1, -1, -1), (1, 1, -1), (500, 2, -1), (-2, 2, -1), (-1,)])
def test_vocabulary_rows_that_make_no_sense(tmp_path: Path, rows: tuple[int, ...]) -> None:
    folder = write_checkpoint(tmp_path, Shape(num_layers=1, vocab_size=500, vocabulary_rows=rows))
    assert "tensor vocabulary_rows: must hold" in refusal(folder)


def test_a_compact_vocabulary_without_its_rows(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, COMPACT)
    change_tensors(folder, lambda tensors: tensors.pop("vocabulary_rows"))
    assert "tensor vocabulary_rows: the tensor is missing" in refusal(folder)


def test_an_error_survives_the_way_from_another_process(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(copy, CheckpointError)
    assert (str(copy), copy.path, copy.tensor) == (str(caught.value), folder, None)
