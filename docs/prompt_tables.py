"""Prompts beside a peer's and the time of loading, for docs/benchmarks.md.

From benchmarks/results/h200-prefill.json and load.json.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["render_loads", "render_prompts"]

Row = dict[str, Any]


def render_prompts(rows: Iterable[Row], words: dict[str, str]) -> str:
    """A line for each shape and length, ours beside a peer's; "" without rows."""
    rows = list(rows)
    ours = [row for row in rows if row["peer"] is None]
    if not ours:
        return ""
    names = ("shape", "prompt", "first", "peer_first", "ratio", "decode", "peak")
    lines = [[words[name] for name in names], ["---"] * len(names)]
    for row in sorted(ours, key=lambda row: (row["shape"], row["prompt_tokens"])):
        peer = next((other for other in rows if other["peer"] and _is_like(other, row)), None)
        seconds = row["time_to_first_token_seconds"]
        theirs = peer and peer["time_to_first_token_seconds"]
        lines.append(
            [
                f"{row['shape']}, {row['quantize']}",
                f"{row['prompt_tokens']:,}",
                f"{1000 * seconds:.1f} ms",
                f"{1000 * theirs:.1f} ms" if theirs else "–",
                f"{theirs / seconds:.2f}" if theirs else "–",
                f"{row['decode_tokens_per_second']:,.1f}",
                f"{row['peak_gpu_process_bytes'] / 2**30:.2f} GiB",
            ]
        )
    return "\n".join(
        [
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
            words["prompts_where"].format(**_origin(rows)),
        ]
    )


def render_loads(rows: Iterable[Row], words: dict[str, str]) -> str:
    """A line for each way of loading; "" without rows."""
    rows = list(rows)
    if not rows:
        return ""
    names = ("shape", "computed", "files", "seconds", "rate", "rss", "anonymous", "gpu_peak")
    lines = [[words[name] for name in names], ["---"] * len(names)]
    for row in rows:
        gpu_bytes = row["peak_gpu_process_bytes"]
        lines.append(
            [
                _weights_of(row),
                words["threads"].format(**row) if row["device"] == "cpu" else row["device"],
                f"{row['file_bytes'] / 1e9:.1f} GB",
                f"{row['load_seconds']:.1f} s",
                f"{row['file_bytes_per_second'] / 1e9:.1f} GB/s",
                f"{row['peak_process_bytes'] / 1e9:.2f} GB",
                f"{row['peak_anonymous_bytes'] / 1e9:.2f} GB",
                f"{gpu_bytes / 2**30:.2f} GiB" if gpu_bytes else "–",
            ]
        )
    origin = {"commit": _joined(rows, "commit")}
    return "\n".join(
        [
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
            words["loads_where"].format(**origin),
        ]
    )


def _weights_of(row: Row) -> str:
    """The shape and what its weights become; of a GGUF file the folder's name says the types."""
    return row["shape"] if row["layout"] == "gguf" else f"{row['shape']}, {row['quantize']}"


def _is_like(one: Row, other: Row) -> bool:
    return all(one[name] == other[name] for name in ("shape", "prompt_tokens", "batch", "device"))


def _origin(rows: list[Row]) -> dict[str, str]:
    peers = [row for row in rows if row["peer"]]
    return {
        "peer": ", ".join(dict.fromkeys(f"{row['peer']} {row['peer_version']}" for row in peers)),
        "device": _joined(rows, "device"),
        "commit": _joined([row for row in rows if row["peer"] is None], "commit"),
    }


def _joined(rows: list[Row], name: str) -> str:
    return ", ".join(dict.fromkeys(str(row[name]) for row in rows))
