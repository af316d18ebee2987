"""What this machine has: memory within the limits of its container, processors, graphics cards."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = [
    "Cpu",
    "Gpu",
    "Ram",
    "measure_ram_bandwidth",
    "peak_rss_bytes",
    "probe_cpu",
    "probe_gpus",
    "probe_ram",
]

_UNLIMITED_BYTES = 1 << 60  # control groups v1 write "no limit" as a number near 2**63


@dataclass(frozen=True)
class Ram:
    """Main memory that this process may use.

    ``limit_bytes`` is the control group's limit where it is lower than the machine's memory.
    """

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None


@dataclass(frozen=True)
class Cpu:
    """The processor; ``num_cores`` counts the logical cores that this process may use."""

    name: str
    num_cores: int


@dataclass(frozen=True)
class Gpu:
    """One graphics card that torch can use."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int]


def peak_rss_bytes() -> int:
    """The most main memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def probe_ram(root: Path = Path("/")) -> Ram:
    """Memory of the machine, or of the container where that is less.

    ``root`` is where /proc and /sys are looked for.
    """
    host = psutil.virtual_memory()
    total_bytes, available_bytes, limit_bytes = host.total, host.available, None
    for group_limit_bytes, group_used_bytes in _memory_groups(root):
        if group_limit_bytes < total_bytes:
            total_bytes = limit_bytes = group_limit_bytes
        free_bytes = max(0, group_limit_bytes - group_used_bytes)
        available_bytes = min(available_bytes, free_bytes)
    return Ram(total_bytes, available_bytes, limit_bytes)


def _memory_groups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, use without file cache) of each limited group of this process, from inside out."""
    for mount, (limit_name, usage_name, *cache_keys) in _group_mounts(root, "memory"):
        limit = _read_int(mount / limit_name)
        if limit is None or limit >= _UNLIMITED_BYTES:
            continue
        # Pages of files, mapped weights among them, are dropped when memory is asked for.
        cached = sum(_read_stat(mount / "memory.stat", key) for key in cache_keys)
        yield limit, max(0, (_read_int(mount / usage_name) or 0) - cached)


# Where a group's limit and use stand, and the names of its file cache in memory.stat.
_V1_FILES = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_active_file",
    "total_inactive_file",
)
_V2_FILES = ("memory.max", "memory.current", "active_file", "inactive_file")


def _group_mounts(root: Path, controller: str) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Folders of the control groups of this process, from the innermost outwards.

    A container often sees its own group as the root of the mount while /proc names the path
    outside, so paths that do not exist are passed over and the root is always looked at.
    """
    for line in _read_lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            base, files = root / "sys/fs/cgroup", _V2_FILES
        elif controller in controllers.split(","):
            base, files = root / "sys/fs/cgroup" / controller, _V1_FILES
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            if ".." not in folder.parts and (base / folder).is_dir():
                yield base / folder, files


def probe_cpu(root: Path = Path("/")) -> Cpu:
    """The processor's name and how many logical cores affinity and CPU quota leave."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    num_cores = num_cores or os.cpu_count() or 1
    for mount, files in _group_mounts(root, "cpu"):
        quota = _cpu_quota(mount, is_v2=files is _V2_FILES)
        if quota is not None:
            num_cores = min(num_cores, max(1, -(-quota[0] // quota[1])))
    name = next(
        (
            line.partition(":")[2].strip()
            for line in _read_lines(root / "proc/cpuinfo")
            if line.startswith("model name")
        ),
        "unknown",
    )
    return Cpu(name, num_cores)


def _cpu_quota(mount: Path, is_v2: bool) -> tuple[int, int] | None:
    """(microseconds of CPU, of each period of so many microseconds), None where unlimited."""
    if is_v2:
        words = " ".join(_read_lines(mount / "cpu.max")).split()
        pair = [int(word) for word in words if word.isdigit()]
    else:
        values = (_read_int(mount / f"cpu.cfs_{word}_us") for word in ("quota", "period"))
        pair = [value for value in values if value is not None]
    return (pair[0], pair[1]) if len(pair) == 2 and min(pair) > 0 else None


def probe_gpus() -> tuple[Gpu, ...]:
    """The graphics cards that torch can use; loads torch."""
    import torch

    if not torch.cuda.is_available():
        return ()
    gpus = []
    for index in range(torch.cuda.device_count()):
        free_bytes, total_bytes = torch.cuda.mem_get_info(index)
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        gpus.append(Gpu(index, properties.name, total_bytes, free_bytes, capability))
    return tuple(gpus)


def measure_ram_bandwidth(num_bytes: int = 256 << 20, seconds: float = 0.5) -> float:
    """Bytes per second that all threads of torch together read from memory; the best pass counts.

    ``num_bytes`` should be several times the last cache. Loads torch.
    """
    import torch

    data = torch.ones(num_bytes // 4, dtype=torch.float32)
    best_seconds = float("inf")
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        data.sum()
        best_seconds = min(best_seconds, time.perf_counter() - start)
        if time.perf_counter() >= end:
            return data.nbytes / best_seconds


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _read_int(path: Path) -> int | None:
    """The integer that a file holds; None where there is no file, or it says ``max`` or -1."""
    text = "".join(_read_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _read_stat(path: Path, key: str) -> int:
    for line in _read_lines(path):
        name, _, value = line.partition(" ")
        if name == key and value.strip().isdigit():
            return int(value)
    return 0
