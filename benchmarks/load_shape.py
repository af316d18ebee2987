"""Measure loading a model of a published size from files in the page cache.

    python benchmarks/load_shape.py write llama-8b /tmp/llama-8b
    python benchmarks/load_shape.py load /tmp/llama-8b --quantize int8 --device cuda
    python benchmarks/load_shape.py load /tmp/llama-8b --device cuda --gpu-memory 6GiB
    python benchmarks/load_shape.py packed /tmp/llama-8b /tmp/llama-8b-packed --device cpu

``write`` makes a folder as the hub has it, bfloat16, whose weights are noise. ``load`` reads its
files once, so that they are in the page cache, and loads the model in a process of its own; a row
has the seconds, bytes of files a second and the peaks of memory. ``packed`` writes the integers as
a model folder first, and loads that. ``gguf_shape.py`` writes a folder for ``load`` too.
"""

import argparse
import json
import math
import sys
import threading
import time
from pathlib import Path

import torch

import apart
import martlet
from martlet.bench.record import checkout_commit
from martlet.bench.shapes import find_shape
from martlet.device.gpu_memory import GpuMemoryWatch, nvml_reader
from martlet.device.probe import peak_rss_bytes
from martlet.models.config import load_architecture

RESULTS = Path(__file__).parent / "results" / "load.json"
_IDENTITY = ("shape", "layout", "quantize", "device", "gpu_memory", "num_threads")
_SHARD_BYTES = 4 << 30
_NOISE_NUMBERS = 16 << 20
_CHUNK_BYTES = 16 << 20


def write(shape_name: str, folder: Path) -> None:
    """The folder of a shape: config.json, shards with their index, and a vocabulary of words."""
    shape = find_shape(shape_name)
    folder.mkdir(parents=True)
    architecture = load_architecture(shape.config)
    tensors: dict[str, tuple[int, ...]] = {}
    for block in architecture.block_specs():
        for spec in block.tensors:
            place = architecture.checkpoint_tensor(block.prefix + spec.name)
            if not place.is_whole:
                sys.exit(f"{shape_name} keeps {place.names[0]} fused, which is not written here")
            tensors[place.names[0]] = spec.shape[::-1] if place.transposed else spec.shape
    noise = (torch.randn(_NOISE_NUMBERS) * 0.02).to(torch.bfloat16).view(torch.uint8).numpy().data
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = _SHARD_BYTES
    for name, sizes in tensors.items():
        nbytes = 2 * math.prod(sizes)
        if nbytes > room and shards[-1]:
            shards.append({})
            room = _SHARD_BYTES
        shards[-1][name] = sizes
        room -= nbytes
    index = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / name, shard, noise)
        index.update(dict.fromkeys(shard, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = {**shape.config, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    words = {f"w{number}": number for number in range(architecture.vocab_size)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _write_shard(path: Path, tensors: dict[str, tuple[int, ...]], noise: memoryview) -> None:
    header, end = {}, 0
    for name, sizes in tensors.items():
        nbytes = 2 * math.prod(sizes)
        header[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [end, end + nbytes]}
        end += nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        while end > 0:
            end -= file.write(noise[: min(len(noise), end)])


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold weights."""
    return sorted((*folder.glob("*.safetensors"), *folder.glob("*.gguf")))


def layout_of(folder: Path) -> str:
    """Whose layout a folder has: Martlet's own, the hub's, or one GGUF file."""
    if (folder / "martlet.json").is_file():
        return "martlet"
    return "hub" if (folder / "config.json").is_file() else "gguf"


def warm(folder: Path) -> int:
    """Read all weights of a folder, so that they are in the page cache; bytes of them."""
    total = 0
    buffer = bytearray(_CHUNK_BYTES)
    for path in weight_files(folder):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


class _AnonymousWatch:
    """The most memory of this process that is not pages of files."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "_AnonymousWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.peak_bytes = max(self.peak_bytes, int(line.split()[1]) * 1024)


def load_here(options: argparse.Namespace) -> apart.Row:
    """Load the folder in this process, and what it took."""
    folder = Path(options.folder)
    file_bytes = sum(path.stat().st_size for path in weight_files(folder))
    before = peak_rss_bytes()
    is_cuda = options.device == "cuda"
    watch = GpuMemoryWatch(nvml_reader(0) if is_cuda else None)
    with watch, _AnonymousWatch() as anonymous:
        plan_started = time.perf_counter()
        martlet.plan(folder, device=options.device, gpu_memory=options.gpu_memory)
        started = time.perf_counter()
        reads: list[tuple[float, int]] = []
        model = martlet.load(
            folder,
            progress=lambda done, total, name: reads.append((time.perf_counter(), done)),
            device=options.device,
            quantize=options.quantize,
            gpu_memory=options.gpu_memory,
            num_threads=options.threads,
        )
        if is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return {
        "shape": folder.name,
        "layout": layout_of(folder),
        "quantize": options.quantize or "usual",
        "device": torch.cuda.get_device_name() if is_cuda else "cpu",
        "gpu_memory": options.gpu_memory,
        "num_threads": options.threads or torch.get_num_threads(),
        "load_seconds": seconds,
        # What the driver needs once a process: context, library, the card's rates.
        "first_plan_seconds": started - plan_started,
        "file_bytes": file_bytes,
        "file_bytes_per_second": file_bytes / seconds,
        # From the first tensor to the last: without plan, vocabulary and the card's memory.
        "weights_seconds": reads[-1][0] - reads[0][0],
        "weights_bytes_per_second": (reads[-1][1] - reads[0][1]) / (reads[-1][0] - reads[0][0]),
        "weight_bytes": sum(p.nbytes for p in model.plan.phases[0].placements),
        "rss_before_bytes": before,
        "peak_process_bytes": peak_rss_bytes(),
        "peak_anonymous_bytes": anonymous.peak_bytes,
        "peak_gpu_process_bytes": watch.peak_bytes,
        "placement": model.plan.describe(),
        "torch": torch.__version__,
        "commit": checkout_commit(Path(martlet.__file__).parent),
    }


def load_apart(options: argparse.Namespace) -> None:
    """A row of a process of its own, put into the file of results."""
    print(f"{warm(Path(options.folder)):,} bytes are in the page cache", file=sys.stderr)
    command = ["benchmarks/load_shape.py", "load", str(options.folder), "--here"]
    for flag in ("device", "quantize", "gpu_memory", "threads"):
        if (value := getattr(options, flag)) is not None:
            command += ["--" + flag.replace("_", "-"), str(value)]
    printed, problem = apart.run(command, options.timeout)
    if printed is None:
        sys.exit(f"failed: {problem}")
    row = json.loads(printed)
    row["command"] = "python " + " ".join(part for part in command if part != "--here")
    apart.store(options.out, row, _IDENTITY)
    print(json.dumps(row, indent=1))


def pack(options: argparse.Namespace) -> None:
    """Save the packed form, in a process of its own: a peak of memory is handed down."""
    paths = [str(options.folder), str(options.destination)]
    flags = ["--method", "nearest", "--format", options.quantize or "int8", "--device", "cpu"]
    printed, problem = apart.run(["-m", "martlet", "quantize", *paths, *flags], options.timeout)
    if printed is None:
        sys.exit(f"packing failed: {problem}")


def main() -> None:
    """Write, load, or pack and load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("write")
    verb.add_argument("shape")
    verb.add_argument("folder", type=Path)
    for name in ("load", "packed"):
        verb = verbs.add_parser(name)
        verb.add_argument("folder", type=Path)
        if name == "packed":
            verb.add_argument("destination", type=Path)
        verb.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
        verb.add_argument("--quantize")
        verb.add_argument("--gpu-memory")
        verb.add_argument("--threads", type=int)
        verb.add_argument("--timeout", type=float, default=560)
        verb.add_argument("--out", type=Path, default=RESULTS)
        verb.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    # tokenizers.py beside this file would be found in place of the library of that name.
    sys.path.remove(str(Path(__file__).resolve().parent))
    if options.verb == "write":
        write(options.shape, options.folder)
        return
    if options.verb == "packed":
        if not options.destination.exists():
            pack(options)
        options.folder, options.quantize = options.destination, None
    if options.here:
        print(json.dumps(load_here(options)))
    else:
        load_apart(options)


if __name__ == "__main__":
    main()
