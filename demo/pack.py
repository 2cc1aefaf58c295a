"""Writes a trained model as a checkpoint that Chorus loads: `python -m demo.pack RUN [FOLDER]`.

The layout is Hugging Face's for gpt-oss with MXFP4 experts, in the compact-vocabulary form: only the rows that the
model knows are stored, with their token ids in `vocabulary_rows` (-1: the row that stands for every other id).
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from demo.config import ModelConfig
from demo.mxfp4 import packed

SHIPPED = Path(__file__).parents[1] / "workers" / "chorus_workers" / "demo_model"


def checkpoint(weights: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    """The tensors of the checkpoint, from a state dict of DemoModel."""
    tensors = {"vocabulary_rows": torch.tensor(rows, dtype=torch.int32)}
    for name, value in weights.items():
        for target, tensor in _renamed(name, value):
            if tensor.dtype == torch.float32:
                tensor = tensor.to(torch.bfloat16)
            tensors[target] = tensor.contiguous()
    return tensors


def _renamed(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    if name == "lm_head":
        return [("lm_head.weight", value)]
    if name == "embed_tokens":
        return [("model.embed_tokens.weight", value)]
    name = f"model.{name}".replace(".experts.router.", ".mlp.router.").replace(".experts.", ".mlp.experts.")
    if name.endswith(("gate_up_proj", "down_proj")):
        blocks, scales = packed(value)
        return [(f"{name}_blocks", blocks), (f"{name}_scales", scales)]
    return [(name.replace("gate_up_bias", "gate_up_proj_bias").replace("down_bias", "down_proj_bias"), value)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=SHIPPED)
    arguments = parser.parse_args()
    weights = torch.load(arguments.run / "weights.pt", map_location="cpu")
    tensors = checkpoint(weights, json.loads((arguments.run / "rows.json").read_text()))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, arguments.folder / "model.safetensors", metadata={"format": "pt"})
    (arguments.folder / "config.json").write_text(json.dumps(ModelConfig().to_hugging_face(), indent=2) + "\n")
    size = (arguments.folder / "model.safetensors").stat().st_size
    print(f"{len(tensors)} tensors, {size / 1e6:.2f} MB in {arguments.folder}")


if __name__ == "__main__":
    main()
