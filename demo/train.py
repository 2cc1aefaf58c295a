"""Trains the demo model on generated conversations: `python -m demo.train --steps 20000 --out RUN`.

Needs one CUDA device (a CPU will do for a few steps at small sizes). RUN receives rows.json, state.pt (to resume from),
weights.pt (what demo.pack reads) and log.jsonl.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from demo.config import ModelConfig
from demo.data import IGNORED, ROW_LENGTH, Chunk, Packer, Stream, make_chunk, vocabulary_rows
from demo.encode import Encoder
from demo.generator import Generator
from demo.model import DemoModel, Mask, masks_of
from demo.optimizer import Optimizer, rate_scale
from demo.sample import Sample
from demo.vocabulary import rare_words

# The share of training after which experts are rounded to MXFP4, and over which the rounding fades in.
ROUND_FROM, ROUND_FADE = 0.25, 0.05
BALANCE_WEIGHT = 0.002


class HeldOut:
    """Held-out documents, judged by teacher-forced exact match: what greedy decoding would get wholly right."""

    def __init__(self, packer: Packer, rare: tuple[str, ...], seed: int, count: int, num_rows: int) -> None:
        samples = islice(Generator(f"{seed}-judge", "heldout", rare), count)
        self.samples: list[Sample] = []
        documents = self._documents(packer, samples)
        self.chunks: list[Chunk] = []
        pending: list[tuple[list[int], int]] = list(documents)
        while pending:
            chunk, packed = packer.pack(iter(pending), num_rows)
            self.chunks.append(chunk)
            pending = pending[len(packed) :]

    def _documents(self, packer: Packer, samples: Iterator[Sample]) -> Iterator[tuple[list[int], int]]:
        for sample in samples:
            document = packer.document(sample)
            if document is not None:
                self.samples.append(sample)
                yield document

    @torch.no_grad()
    def shares(self, model: DemoModel, device: str) -> dict[str, float]:
        right: dict[tuple[str, str], list[bool]] = defaultdict(list)
        results = [result for chunk in self.chunks for result in self._judge(model, chunk, device)]
        for sample, result in zip(self.samples, results, strict=True):
            right[sample.task, sample.effort].append(result)
        tasks = sorted({task for task, _ in right})
        shares = {}
        for task in tasks:
            for effort in ("low", "medium", "high"):
                found = right[task, effort]
                shares[f"{task}/{effort}"] = round(sum(found) / max(1, len(found)), 3)
        shares["all"] = round(sum(results) / len(results), 4)
        return shares

    def _judge(self, model: DemoModel, chunk: Chunk, device: str) -> list[bool]:
        """One result for each document, in the order in which they were packed."""
        labels = torch.from_numpy(chunk.labels).flatten().long()
        wanted = (labels != IGNORED).nonzero().flatten()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits, _ = model(
                *inputs(chunk, model.config.sliding_window, device, compiled=False),
                wanted.to(device),
                torch.ones((), device=device),
            )
        hits = (logits.argmax(-1).cpu() == labels[wanted]).tolist()
        verdicts: dict[tuple[int, int], bool] = {}
        documents = chunk.documents
        for flat, hit in zip(wanted.tolist(), hits, strict=True):
            key = (flat // ROW_LENGTH, int(documents[flat // ROW_LENGTH, flat % ROW_LENGTH]))
            verdicts[key] = verdicts.get(key, True) and hit
        return [verdicts[key] for key in chunk.order]


def inputs(chunk: Chunk, window: int, device: str, compiled: bool = True) -> tuple[Tensor, Tensor, tuple[Mask, Mask]]:
    """Tokens and positions, int64 [rows, ROW_LENGTH] on the device, and the masks."""
    arrays = (chunk.tokens, chunk.positions, chunk.documents)
    tensors = [torch.from_numpy(array) for array in arrays]
    if device == "cuda":
        tensors = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
    tokens, positions, documents = (tensor.long() for tensor in tensors)
    return tokens, positions, make_masks(documents, window) if compiled else masks_of(documents, window, dense=True)


make_masks = torch.compile(masks_of, dynamic=False) if torch.cuda.is_available() else masks_of


def learned(chunk: Chunk, room: int, device: str) -> tuple[Tensor, Tensor]:
    """Flat indices of the positions to learn, and their labels, both filled up to `room` (labels IGNORED)."""
    labels = torch.from_numpy(chunk.labels).flatten().long()
    wanted = (labels != IGNORED).nonzero().flatten()[:room]
    # Distinct fillers: many gradients added at one place would queue up.
    fillers = torch.arange(room - len(wanted))
    targets = torch.cat((labels[wanted], torch.full_like(fillers, IGNORED)))
    return torch.cat((wanted, fillers)).to(device, non_blocking=True), targets.to(device, non_blocking=True)


def loss_of(
    model: DemoModel, rows: tuple[Tensor, Tensor, tuple[Mask, Mask]], wanted: Tensor, targets: Tensor, blend: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy in nats, and the routers' balance."""
    logits, balance = model(*rows, wanted, blend)
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED), balance


class Training:
    """One run: the model, its optimizer, and where it stands."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(arguments.seed)
        torch.set_float32_matmul_precision("high")
        # The worker processes need the cores; a thread that waits for one of them would delay each step.
        torch.set_num_threads(1)
        self.out = Path(arguments.out)
        self.out.mkdir(parents=True, exist_ok=True)
        encoder = Encoder()
        rows_file = self.out / "rows.json"
        if not rows_file.exists():
            rows_file.write_text(json.dumps(vocabulary_rows(encoder, arguments.seed, arguments.row_samples, 5)))
        self.rows: list[int] = json.loads(rows_file.read_text())
        self.packer = Packer(encoder, self.rows)
        self.rare = rare_words(encoder.encoding)
        self.model = DemoModel(ModelConfig(), len(self.rows), ROW_LENGTH).to(self.device)
        self.optimizer = Optimizer(self.model, arguments.muon_rate, arguments.adam_rate)
        self.compute = torch.compile(loss_of, dynamic=False) if self.device == "cuda" else loss_of
        self.blend = torch.zeros((), device=self.device)
        self.step, self.seconds, self.tokens = 0, 0.0, 0
        self._resume()

    def run(self) -> None:
        arguments = self.arguments
        judge = HeldOut(self.packer, self.rare, arguments.seed, arguments.judged, arguments.rows)
        self.learn(make_chunk(self.packer, self.rare, arguments.seed, -1, arguments.rows), 0.0)
        stream = Stream(self.rows, arguments.seed, self.step, arguments.workers, arguments.rows)
        losses, waited, reported = torch.zeros((), device=self.device), 0.0, 0.0
        before = self.seconds
        begin = time.monotonic()
        while (progress := self.progress()) < 1:
            asked = time.monotonic()
            chunk = stream.get()
            waited += time.monotonic() - asked
            losses += self.learn(chunk, rate_scale(self.step, progress))
            self.step += 1
            self.seconds = before + time.monotonic() - begin
            if self.step % arguments.report == 0:
                self.log(
                    {
                        "loss": round(losses.item() / arguments.report, 5),
                        "seconds": round(self.seconds, 1),
                        "tokens": self.tokens,
                        "ms_per_step": round((self.seconds - reported) / arguments.report * 1e3, 1),
                        "waited_ms": round(waited / arguments.report * 1e3, 1),
                    }
                )
                losses.zero_()
                waited, reported = 0.0, self.seconds
            if self.step % arguments.judge_every == 0 or self.progress() >= 1:
                self.log(judge.shares(self.model, self.device))
                self._save()
        stream.close()

    def progress(self) -> float:
        """The share of the training that is done."""
        return float(max(self.step / self.arguments.steps, self.seconds / (self.arguments.minutes * 60)))

    def learn(self, chunk: Chunk, scale: float) -> Tensor:
        """One step; returns the loss. With `scale` 0 nothing is learned (but everything is compiled)."""
        wanted, targets = learned(chunk, int(self.arguments.rows * ROW_LENGTH * 0.3), self.device)
        round_from = 0.0 if self.arguments.start_from else ROUND_FROM
        self.blend.fill_(min(1.0, max(0.0, (self.progress() - round_from) / ROUND_FADE)))
        packed = inputs(chunk, self.model.config.sliding_window, self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            loss, balance = self.compute(self.model, packed, wanted, targets, self.blend)
        (loss + BALANCE_WEIGHT * balance).backward()
        self.optimizer.step(scale)
        self.tokens += int((chunk.documents > 0).sum())
        return loss.detach()

    def log(self, entry: dict[str, float]) -> None:
        line = json.dumps({"step": self.step} | entry)
        print(line, flush=True)
        with (self.out / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def _save(self) -> None:
        weights = {name: parameter.detach().cpu() for name, parameter in self.model.state_dict().items()}
        torch.save(weights, self.out / "weights.pt")
        state = {"step": self.step, "seconds": self.seconds, "tokens": self.tokens, "weights": weights}
        state |= {"adam": self.optimizer.adam.state_dict(), "muon": self.optimizer.muon.buffers()}
        torch.save(state, self.out / "state.tmp")
        (self.out / "state.tmp").rename(self.out / "state.pt")

    def _resume(self) -> None:
        """Loads what an interrupted run left; or else the weights to start from, if named."""
        if (self.out / "state.pt").exists():
            state = torch.load(self.out / "state.pt", map_location=self.device)
            self.model.load_state_dict(state["weights"])
            self.optimizer.adam.load_state_dict(state["adam"])
            self.optimizer.muon.load_buffers(state["muon"])
            self.step, self.seconds, self.tokens = state["step"], state["seconds"], state["tokens"]
        elif self.arguments.start_from:
            weights = torch.load(self.arguments.start_from, map_location=self.device)
            self.model.load_state_dict({name: value.float() for name, value in weights.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument(
        "--minutes", type=float, default=100_000.0, help="end after so many minutes if the steps are not done"
    )
    parser.add_argument("--rows", type=int, default=128, help=f"rows of {ROW_LENGTH} tokens a step")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--adam-rate", type=float, default=0.003)
    parser.add_argument("--row-samples", type=int, default=40_000)
    parser.add_argument("--judged", type=int, default=2_000)
    parser.add_argument("--judge-every", type=int, default=2_000)
    parser.add_argument("--report", type=int, default=100)
    parser.add_argument("--start-from", help="weights.pt of another run")
    Training(parser.parse_args()).run()


if __name__ == "__main__":
    main()
