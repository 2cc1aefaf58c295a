"""The error of fp8 KV: logits over it against logits over KV of the model's dtype, at the same tokens.

usage: PYTHONPATH=cluster:workers:kernels:vocabulary:. python -m benchmarks.kv_dtype --model DIR [--text FILE]
       [--note TEXT]

The text's tokens are given, whatever the model would say (teacher-forced): those of --prefill in chunks of --chunk,
then those of --decode one by one; without a file, our own documents. One JSON line each for the positions of prefill
and of decode: `relative_rms` is the root mean square of the difference of logits over that of the logits, each
position's mean taken off both, as the softmax doesn't see it; `top1` the share of positions with the same likeliest
token; `kl` the mean divergence of the two distributions, and `nll` the mean negative log-likelihood of the text's next
token, in nats.

A third run, with KV of the model's dtype but every chunk cut in two, shows what the mere order of bfloat16 sums does:
an error of fp8 near its is none. With a note, the lines are added to benchmarks/results/kv_dtype.jsonl.

Without a GPU, kernels are interpreted: for tiny checkpoints, such as `--model random --prefill 24 --decode 4`.
"""

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.forced import ForcedSequences, checkpoint, load
from benchmarks.results import append, environment
from tests.support import interpreter
from torch import Tensor

_HARMONY_SIZE = 201088


@dataclass(slots=True)
class Difference:
    """Sums over positions."""

    squared: float = 0.0
    squared_difference: float = 0.0
    agreeing: int = 0
    kl: float = 0.0
    nll: float = 0.0
    expected_nll: float = 0.0
    num_positions: int = 0

    def add(self, actual: Tensor, expected: Tensor, next_ids: Tensor) -> None:
        """Logits [T, N], and the tokens that come next: int64 [T]."""
        actual, expected = (logits - logits.mean(-1, keepdim=True) for logits in (actual, expected))
        self.squared += float(expected.square().sum())
        self.squared_difference += float((actual - expected).square().sum())
        self.agreeing += int((actual.argmax(-1) == expected.argmax(-1)).sum())
        log_p, log_q = expected.log_softmax(-1), actual.log_softmax(-1)
        self.kl += float((log_p.exp() * (log_p - log_q)).sum())
        self.nll -= float(log_q.gather(1, next_ids.unsqueeze(1)).sum())
        self.expected_nll -= float(log_p.gather(1, next_ids.unsqueeze(1)).sum())
        self.num_positions += len(next_ids)

    def row(self) -> dict[str, object]:
        count = self.num_positions
        return {
            "positions": count,
            "relative_rms": round((self.squared_difference / self.squared) ** 0.5, 5),
            "top1": round(self.agreeing / count, 5),
            "kl": round(self.kl / count, 6),
            "nll": round(self.nll / count, 5),
            "nll_of_model_dtype": round(self.expected_nll / count, 5),
        }


def tokens(text: Path | None, count: int, vocab_size: int) -> list[int]:
    """The text's first tokens; of a vocabulary that isn't gpt-oss's, random ones. Errors: ValueError, if too few."""
    if vocab_size < _HARMONY_SIZE:
        return torch.randint(0, vocab_size, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    from chorus_cluster.harmony.encoding import load_encoding

    documents = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
    words = "\n".join(file.read_text(encoding="utf-8") for file in ([text] if text else documents))
    ids = load_encoding().encode(words, allowed_special=set(), disallowed_special=())
    if len(ids) < count:
        raise ValueError(f"the text has {len(ids)} tokens: --prefill and --decode must be fewer together")
    return ids[:count]


def compare(model: Any, ids: Sequence[int], num_prefill: int, chunk: int) -> dict[str, dict[str, Difference]]:
    """By what differs, and by phase. The last token is only what the one before it should foresee."""
    length, dtype = len(ids) - 1, model.embedding.dtype
    plain, cut, fp8 = (ForcedSequences(model, 1, length, kind) for kind in (dtype, dtype, torch.float8_e4m3fn))
    found = {name: {"prefill": Difference(), "decode": Difference()} for name in ("chunks cut in two", "fp8_e4m3")}
    starts = [*range(0, num_prefill, chunk), *range(num_prefill, length)]
    for start, stop in zip(starts, [*starts[1:], length], strict=True):
        phase = "prefill" if start < num_prefill else "decode"
        middle = (start + stop) // 2
        parts = [part for part in ((start, middle), (middle, stop)) if part[0] < part[1]]
        expected = plain.logits(start, [ids[start:stop]])
        next_ids = torch.tensor(ids[start + 1 : stop + 1], device=expected.device)
        pieces = torch.cat([cut.logits(first, [ids[first:last]]) for first, last in parts])
        found["chunks cut in two"][phase].add(pieces, expected, next_ids)
        found["fp8_e4m3"][phase].add(fp8.logits(start, [ids[start:stop]]), expected, next_ids)
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint's folder; random: a tiny random one")
    parser.add_argument("--text", type=Path, help="what the tokens are taken from")
    parser.add_argument("--prefill", type=int, default=4096)
    parser.add_argument("--decode", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--note")
    options = parser.parse_args()
    # Before kernels are imported, which is why they are imported so late.
    interpreter.use_where_there_is_no_gpu()
    begin = time.perf_counter()
    with ExitStack() as stack:
        folder = checkpoint(options.model, stack)
        model = load(folder, "fp8_e4m3")
        ids = tokens(options.text, options.prefill + options.decode + 1, model.config.vocab_size)
        for name, phases in compare(model, ids, options.prefill, options.chunk).items():
            for phase, difference in phases.items():
                if difference.num_positions:
                    row = {"model": folder.name, "differs": name, "phase": phase} | difference.row()
                    print(json.dumps(row), flush=True)
                    if options.note:
                        append("kv_dtype", environment() | {"note": options.note} | row)
    print(f"{time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()
