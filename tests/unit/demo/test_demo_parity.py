"""The model as it is trained computes what Transformers computes from the packed checkpoint."""

import dataclasses

import pytest
import torch
from demo.config import ModelConfig
from demo.model import DemoModel, masks_of
from demo.pack import checkpoint
from transformers import GptOssConfig, GptOssForCausalLM

SMALL = dataclasses.replace(
    ModelConfig(), hidden_size=64, intermediate_size=96, num_layers=4, num_heads=6, num_kv_heads=2, num_experts=5,
    experts_per_token=3, sliding_window=8,
)  # fmt: skip
NUM_ROWS = 37


@pytest.fixture(scope="module")
def trained() -> DemoModel:
    torch.manual_seed(3)
    model = DemoModel(SMALL, NUM_ROWS, 64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
            parameter.copy_(parameter.bfloat16().float())
    return model


def unpacked(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    values = torch.stack((table[(blocks & 15).long()], table[(blocks >> 4).long()]), -1).flatten(-2)
    return (values * torch.exp2(scales.float() - 127)[..., None]).flatten(-2)


def transformers_model(trained: DemoModel) -> GptOssForCausalLM:
    tensors = checkpoint(trained.state_dict(), list(range(-1, NUM_ROWS - 1)))
    values = SMALL.to_hugging_face() | {"vocab_size": NUM_ROWS, "pad_token_id": 0, "eos_token_id": 1}
    del values["quantization_config"], values["chorus_compact_vocabulary"]
    model = GptOssForCausalLM(GptOssConfig(**values, attn_implementation="eager")).float().eval()
    state = {}
    for name, tensor in tensors.items():
        if name.endswith("_blocks"):
            name = name.removesuffix("_blocks")
            state[name] = unpacked(tensor, tensors[f"{name}_scales"]).mT.contiguous()
        elif not name.endswith("_scales") and name != "vocabulary_rows":
            state[name] = tensor.float()
    model.load_state_dict(state)
    return model


def test_logits_match_transformers(trained: DemoModel) -> None:
    tokens = torch.randint(0, NUM_ROWS, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = transformers_model(trained)(tokens).logits[0]
        found, _ = trained(
            tokens,
            torch.arange(40)[None],
            masks_of(torch.ones(1, 40, dtype=torch.long), SMALL.sliding_window),
            torch.arange(40),
            torch.ones(()),
        )
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_documents_in_a_row_do_not_see_each_other(trained: DemoModel) -> None:
    first, second = torch.randint(0, NUM_ROWS, (2, 20), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(20)

    def logits(parts: list[torch.Tensor]) -> torch.Tensor:
        documents = torch.cat([torch.full((20,), i + 1) for i in range(len(parts))])
        with torch.no_grad():
            return trained(
                torch.cat(parts)[None],
                positions.repeat(len(parts))[None],
                masks_of(documents[None], SMALL.sliding_window),
                torch.arange(20 * len(parts)),
                torch.ones(()),
            )[0]

    torch.testing.assert_close(logits([first, second])[20:], logits([second]), atol=1e-4, rtol=0)
