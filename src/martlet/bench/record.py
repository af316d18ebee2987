"""One measurement as a row of benchmarks/results/NAME.json."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Record", "checkout_commit", "write_records"]


@dataclass(frozen=True)
class Record:
    """One measurement; None means that it does not apply or was not measured.

    ``shape`` is the model. ``peer`` is None for Martlet itself. ``share_of_limit`` is the shortest
    time that a decode step can take on this machine over the time that it took; the shortest time
    follows from ``copy_ceiling_bytes_per_second`` (how fast the machine moves bytes in the memory
    that the weights are computed from: copies on a GPU, read and written bytes counted; reads on
    the CPU) and ``pcie_bytes_per_second``, both measured in the same run. Speeds are medians over
    ``repetitions``, and of all rows of the ``batch`` together. ``protocol`` names the workload of
    a shape. ``encode_seconds`` and ``prefill_seconds`` (the first pass of the decoder) add up to
    the time to the first token. ``kv_cache`` is the form of keys and values, "none" the type of the
    activations.

    Units:
        weight_bytes_per_token: bytes of weights that one decode step reads.
        streamed_bytes_per_token: those of them that come over PCIe in each step.
        peak_process_bytes: the largest resident size of the process so far.
        peak_gpu_process_bytes: GPU memory of the process as the driver counts it, at its most.
        predicted_seconds_per_token: what the plan said of a decode step.
        resident_blocks, streamed_blocks: decoder blocks, in decode steps.
        kernel_compile_seconds: spent on compiling kernels, once a card; 0 where all were cached.
    """

    shape: str
    quantize: str
    device: str
    torch: str
    commit: str | None
    command: str
    gpu_memory_budget_bytes: int | None
    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    weight_bytes_per_token: int
    copy_ceiling_bytes_per_second: float | None
    pcie_bytes_per_second: float | None
    streamed_bytes_per_token: int
    share_of_limit: float | None
    peak_process_bytes: int
    peer: str | None
    time_to_first_token_seconds: float
    prompt_tokens: int
    output_tokens: int
    repetitions: int
    num_threads: int
    decode_threads: int
    load_seconds: float
    date: str
    protocol: str | None = None
    batch: int = 1
    peer_version: str | None = None
    encode_seconds: float | None = None
    prefill_seconds: float | None = None
    predicted_seconds_per_token: float | None = None
    peak_gpu_process_bytes: int | None = None
    matrix_flop_per_second: float | None = None
    resident_blocks: int | None = None
    streamed_blocks: int | None = None
    kernel_compile_seconds: float | None = None
    kv_cache: str = "none"


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write a list of rows, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    text = json.dumps([asdict(r) for r in records], ensure_ascii=False, indent=2, allow_nan=False)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)


def checkout_commit(package: Path) -> str | None:
    """The commit of the checkout that this package is part of, "-dirty" where files differ.

    None for an installed package, also where it lies in some other project's checkout.
    """
    if not _git(package, "ls-files", "__init__.py"):
        return None
    commit = _git(package, "rev-parse", "--short=12", "HEAD")
    # Measurements that were just written do not change what is measured.
    sources = (":/", ":(top,exclude)benchmarks/results")
    changes = _git(package, "status", "--porcelain", "-uno", "--", *sources)
    return commit and commit + ("-dirty" if changes else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
