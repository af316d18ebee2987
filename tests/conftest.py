"""Model folders that every test may use: real vocabularies, real files, tiny random weights."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from importlib.resources import files
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import settings

from martlet.checkpoint.planned import PlannedBlock, PlannedWeight
from martlet.checkpoint.writer import StoreContents, StoreWriter
from martlet.compression.nearest import quantize_matrix
from martlet.models.config import load_architecture
from martlet.quantization.formats import parse_format
from tokenizers import Tokenizer, models, pre_tokenizers

# One thread a process, here and in the programs that tests start: tests run side by side, and
# threads beyond the cores wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# A busy machine is no failure, so there are no deadlines; CI tries the same examples every time.
settings.register_profile("martlet", deadline=None)
settings.register_profile("martlet-ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("martlet-ci" if os.environ.get("CI") else "martlet")


def pytest_configure(config: pytest.Config) -> None:
    """What this process and those that tests start inherit, however pytest itself was started.

    Dictionaries are built once for all tests, not in the user's cache, and in no home at all. A
    shell without job control lets what it starts in the background ignore Ctrl-C.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if getattr(config, "cache", None) is not None:
        os.environ["XDG_CACHE_HOME"] = str(config.cache.mkdir("cache-home"))


GPT2_CONFIG = {
    "model_type": "gpt2",
    "vocab_size": 30000,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
}
T5_CONFIG = {
    "model_type": "t5",
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "n_positions": 64,
}
LLAMA_CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "head_dim": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
# Of today's families those that ask most of a step: norms of heads, windows, norms around halves.
QWEN3_CONFIG = {**LLAMA_CONFIG, "model_type": "qwen3"}
GEMMA3_CONFIG = {
    **LLAMA_CONFIG,
    "model_type": "gemma3_text",
    "query_pre_attn_scalar": 20,
    "sliding_window": 5,
    "sliding_window_pattern": 2,
}
CONFIGS = {
    "cpm1": GPT2_CONFIG,
    "cpm2": {**T5_CONFIG, "vocab_size": 26240},
    "eva": {**T5_CONFIG, "vocab_size": 30000},
    "gpt2": GPT2_CONFIG,
    "llama": LLAMA_CONFIG,
    "qwen3": QWEN3_CONFIG,
    "gemma3_text": GEMMA3_CONFIG,
    "t5": T5_CONFIG,
}
VOCABULARIES = {"cpm1": "chinese_vocab.model", "cpm2": "vocab.txt", "eva": "vocab.txt"}


def write_model(
    folder: Path,
    family: str,
    *,
    quantize: str = "none",
    config=None,
    generation=None,
    tokenizer=None,
    seed: int = 0,
    weights=None,
) -> Path:
    """A model folder of a family with random weights; norms are ones, so that nothing vanishes.

    ``quantize`` is the format of the matrices, "none" leaves them float32.
    ``tokenizer`` is (kind, {name: file}), by default the published vocabulary of the family.
    With ``weights``, {end of a name: tensor}, all others are zero but for the norms.
    """
    config = {**CONFIGS[family], **(config or {})}
    if tokenizer is None:
        vocabulary = Path(str(files("martlet"))) / "zoo" / f"{family}-mini" / VOCABULARIES[family]
        tokenizer = (family, {vocabulary.name: vocabulary})
    specs = load_architecture(config).block_specs()
    format = parse_format(quantize)
    contents = StoreContents(
        blocks=tuple(_planned(spec, format) for spec in specs),
        config=config,
        family=family,
        tokenizer=tokenizer,
        generation=generation or {},
    )
    random = torch.Generator().manual_seed(seed)
    with StoreWriter(folder, contents) as writer:
        for spec in specs:
            for tensor in spec.tensors:
                # Small in the layers, so that attention stays soft and errors do not grow; large
                # in embedding and head, so that the next token is not a matter of rounding.
                is_table = tensor.kind == "embedding" or "lm_head" in tensor.name
                weight = torch.randn(tensor.shape, generator=random) * (0.5 if is_table else 0.1)
                if tensor.name.endswith(
                    ("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")
                ):
                    # Gemma keeps the difference to 1.
                    weight = torch.full(tensor.shape, 0.0 if family.startswith("gemma") else 1.0)
                elif weights is not None:
                    weight = _given(weights, tensor)
                name = spec.prefix + tensor.name
                if format is not None and tensor.kind != "other":
                    weight = quantize_matrix(weight, format)
                writer.write_weight(name, weight)
    return folder


def _given(weights, tensor):
    found = [weight for end, weight in weights.items() if tensor.name.endswith(end)]
    return found[0] if found else torch.zeros(tensor.shape)


def _planned(spec, format):
    weights = (
        PlannedWeight(
            spec.prefix + tensor.name,
            tensor.shape,
            torch.float32 if format is None or tensor.kind == "other" else format,
        )
        for tensor in spec.tensors
    )
    return PlannedBlock(spec.name, spec.prefix, tuple(weights))


@pytest.fixture(scope="session")
def make_model(tmp_path_factory):
    """Makes another tiny model folder: ``make_model("cpm1", config={"n_positions": 16})``."""

    def make(family, **options):
        return write_model(tmp_path_factory.mktemp(family) / f"tiny-{family}", family, **options)

    return make


@pytest.fixture(scope="session")
def make_chatting_model(make_model):
    """Makes a model with a chat template that says what it is told to: see ``chatting.py``."""
    from .chatting import write_chatting_model

    return partial(write_chatting_model, make_model)


@pytest.fixture(scope="session")
def tiny_cpm1(make_model) -> Path:
    """A CPM-1 of two layers with 64 positions."""
    return make_model("cpm1")


@pytest.fixture(scope="session")
def tiny_cpm2(make_model) -> Path:
    """A CPM-2 of two and two layers, int8, whose encoder reads 64 tokens."""
    return make_model("cpm2", quantize="int8")


@pytest.fixture(scope="session")
def tiny_eva(make_model) -> Path:
    """An EVA of two and two layers that reads 128 tokens."""
    return make_model("eva")


HUB_CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 29,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 28,
    "eos_token_id": 28,
}


def write_hub_folder(
    folder: Path, *, config=None, dtype=torch.bfloat16, shards: int = 2, seed: int = 7
) -> Path:
    """A folder in the layout of the hub with random weights: shards, their index, a vocabulary.

    ``config`` is added to that of a GPT-2 of two layers, or stands alone if it has a model type.
    """
    config = dict(config or {})
    config = config if "model_type" in config else {**HUB_CONFIG, **config}
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(seed)
    architecture = load_architecture(config)
    state = {}
    for block in architecture.block_specs():
        for spec in block.tensors:
            place = architecture.checkpoint_tensor(block.prefix + spec.name)
            assert place.is_whole
            weight = torch.randn(spec.shape, generator=random) * 0.3
            if spec.name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")):
                weight = torch.ones(spec.shape)
            weight = weight.T.contiguous() if place.transposed else weight
            state[place.names[0]] = weight.to(dtype)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: state[name] for name in list(state)[shard::shards]}
        safetensors.torch.save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "_x": 1}))
    words = [*"abcdefghijklmnopqrstuvwxyz .", *map(str, range(architecture.vocab_size - 29))]
    vocabulary = {word: number for number, word in enumerate([*words, "<|endoftext|>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def make_hub_folder(tmp_path_factory):
    """Makes a folder in the layout of the hub: ``make_hub_folder(dtype=torch.float32)``."""

    def make(**options):
        return write_hub_folder(tmp_path_factory.mktemp("hub") / "tiny", **options)

    return make
