"""Train one model for a given time; the learning rate follows the clock, so it always ends well.

    python training/train.py MODEL PREPARED_FOLDER OUTPUT_FOLDER --seconds 400 [--teacher FOLDER]

MODEL is cpm1-teacher, cpm1-mini, cpm2-mini or eva-mini. Writes OUTPUT_FOLDER/MODEL/ in the
published Hugging Face layout (config.json, model.safetensors in float16) and training.json (what
was done).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from muon import StackedMuon
from nets import GPT2, T5
from objectives import Objective, Run, objective
from shapes import CONFIGS, GPT2Config

REPORT_SECONDS = 30


class Clock:
    """Fraction of the time that is over, and the learning rate that belongs to it."""

    def __init__(self, seconds: float, steps: int | None) -> None:
        self.seconds, self.steps, self.start = seconds, steps, time.time()

    def fraction(self, step: int) -> float:
        """0 at the start, 1 or more when the time (or the number of steps) is used up."""
        by_time = (time.time() - self.start) / self.seconds
        return max(by_time, step / self.steps) if self.steps else by_time

    def rate(self, step: int) -> float:
        """Up in 300 steps, level, then down over the last 60 % of the time."""
        done = min(1.0, self.fraction(step))
        falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - 0.4) / 0.6))
        return min(1.0, (step + 1) / 300) * (1.0 if done < 0.4 else falling)


def optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head, norms and biases."""
    matrices: list[Tensor] = []
    tables: list[Tensor] = []
    vectors: list[Tensor] = []
    for name, p in model.named_parameters():
        inside = name.startswith(("h.", "encoder.", "decoder."))
        (vectors if p.dim() < 2 else matrices if inside else tables).append(p)
    groups = [{"params": tables, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=torch.cuda.is_available())
    return [StackedMuon(matrices, lr=lr), adam]


class Trainer:
    """One model on its way: takes steps, and keeps a row of measurements."""

    def __init__(self, model: nn.Module, run: Run, clock: Clock, lr: float) -> None:
        self.model, self.run, self.clock, self.lr = model, run, clock, lr
        self.task: Objective = objective(run)
        self.optimizers = optimizers(model, lr)
        self.history: list[dict[str, float]] = []

    def train(self) -> int:
        """Step until the clock has run out; the number of steps taken."""
        forward = self.run.compiled(self.model)
        shown = time.time()
        step = 0
        self.model.train()
        for make_loss in self.task.losses(forward, self.clock.fraction):
            self._set_rate(self.lr * self.clock.rate(step))
            with self.run.autocast():
                loss = make_loss()
            self._apply(loss)
            if step == 0:
                self.clock.start = time.time()  # compiling is not training
            step += 1
            is_over = self.clock.fraction(step) >= 1
            if is_over or time.time() - shown > REPORT_SECONDS:
                shown = time.time()
                self._measure(step, loss.item())
            if is_over:
                break
        return step

    def _set_rate(self, rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _apply(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _measure(self, step: int, loss: float) -> None:
        seconds = round(time.time() - self.clock.start, 1)
        row = {"step": step, "seconds": seconds, "train_bits": round(loss / math.log(2), 3)}
        bits = self.task.held_out_bits(self.model)
        row |= {name: round(value, 4) for name, value in bits.items()}
        self.history.append(row)
        print(self.run.model, row, flush=True)


def save(model: GPT2 | T5, folder: Path, report: dict[str, Any]) -> None:
    """The Hugging Face folder (float16) and the report."""
    folder.mkdir(parents=True, exist_ok=True)
    config, tensors = model.to_huggingface()
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    halves = {k: v.detach().half().contiguous().cpu() for k, v in tensors.items()}
    save_file(halves, folder / "model.safetensors")
    (folder / "training.json").write_text(json.dumps(report, indent=2, ensure_ascii=False))
    if report["model"] == "cpm1-teacher":
        torch.save({k: v.half() for k, v in model.state_dict().items()}, folder / "state.pt")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=CONFIGS)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--steps", type=int, help="stop after so many steps, for a trial")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=512, help="tokens of a writer's window")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--teacher", type=Path, help="folder of the trained cpm1-teacher")
    return parser.parse_args()


def main() -> None:
    """Train, report every half minute, save."""
    args = parse()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    config = CONFIGS[args.model]
    model = (GPT2(config) if isinstance(config, GPT2Config) else T5(config)).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(args.model, f"{parameters:,} parameters", flush=True)
    run = Run(
        model=args.model,
        prepared=args.prepared,
        batch=args.batch,
        length=args.length,
        workers=args.workers,
        teacher=args.teacher,
        device=device,
    )
    trainer = Trainer(model, run, Clock(args.seconds, args.steps), args.lr)
    steps = trainer.train()
    report = {"model": args.model, "parameters": parameters, "config": asdict(config)}
    report |= {"history": trainer.history, "batch": args.batch, "length": args.length}
    report |= {"lr": args.lr, "steps": steps, "torch": torch.__version__}
    report["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    save(model, args.output / args.model, report)


if __name__ == "__main__":
    main()
