"""Write a GGUF file of a published size, to measure how long it takes to load.

    python benchmarks/gguf_shape.py llama-8b /tmp/llama-8b-q4_k_m --mix q4_k_m
    python benchmarks/load_shape.py load /tmp/llama-8b-q4_k_m --device cpu

The blocks are noise with small scales. ``q4_k_m`` has Q6_K where the files of that name have it:
the output matrix, and values and down projections of every third layer and of those at both ends.
Any other mix is the name of one type of blocks, for all matrices.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

# tokenizers.py beside this file would be found in place of the library of that name.
sys.path.remove(str(Path(__file__).resolve().parent))

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from martlet.bench.shapes import find_shape
from martlet.models.config import load_architecture

# Where a block has its float16 scales.
_SCALES = {
    Type.Q8_0: (0,),
    Type.Q4_0: (0,),
    Type.Q4_1: (0, 2),
    Type.Q5_0: (0,),
    Type.Q5_1: (0, 2),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
}
_SCALE = np.float16(1e-3)
_NOISE_BLOCKS = 1 << 16


def types_of(mix: str, num_layers: int) -> Callable[[str], Type]:
    """The type of each matrix by its name in the file."""
    if mix != "q4_k_m":
        only = Type[mix.upper()]
        return lambda _: only

    def type_of(name: str) -> Type:
        if name == "output.weight":
            return Type.Q6_K
        if not name.endswith(("attn_v.weight", "ffn_down.weight")):
            return Type.Q4_K
        layer, eighth = int(name.split(".")[1]), num_layers // 8
        is_end = layer < eighth or layer >= 7 * eighth
        return Type.Q6_K if is_end or (layer - eighth) % 3 == 2 else Type.Q4_K

    return type_of


def noise(type: Type) -> memoryview:
    """Some blocks, as bytes."""
    size = gguf.GGML_QUANT_SIZES[type][1]
    blocks = np.random.default_rng(0).integers(0, 256, (_NOISE_BLOCKS, size), dtype=np.uint8)
    for offset in _SCALES[type]:
        blocks[:, offset : offset + 2] = np.frombuffer(_SCALE.tobytes(), np.uint8)
    return blocks.reshape(-1).data


def write(shape_name: str, path: Path, mix: str) -> None:
    """The file: settings, a vocabulary of single bytes and words, matrices, norms of ones."""
    config = find_shape(shape_name).config
    architecture = load_architecture(config)
    num_layers = config["num_hidden_layers"]
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    _add_settings(writer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, num_layers)
    type_of = types_of(mix, num_layers)
    tensors: list[tuple[Type, int]] = []
    for block in architecture.block_specs():
        for spec in block.tensors:
            name = names.get_name(block.prefix + spec.name, try_suffixes=(".weight",))
            assert name is not None, spec.name
            type = type_of(name) if len(spec.shape) == 2 else Type.F32
            elements, size = gguf.GGML_QUANT_SIZES[type]
            nbytes = int(np.prod(spec.shape)) // elements * size
            tensors.append((type, nbytes))
            if type == Type.F32:
                writer.add_tensor_info(name, spec.shape, np.dtype(np.float32), nbytes)
                continue
            shape = (*spec.shape[:-1], spec.shape[-1] // elements * size)
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), nbytes, raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    _append(path, tensors)


def _append(path: Path, tensors: list[tuple[Type, int]]) -> None:
    tiles = {type: noise(type) for type, _ in tensors if type != Type.F32}
    with path.open("r+b", buffering=0) as file:
        file.seek(0, 2)
        for type, nbytes in tensors:
            file.seek(-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT, 1)
            tile = tiles.get(type) or np.ones(nbytes // 4, np.float32).view(np.uint8).data
            left = nbytes
            while left > 0:
                left -= file.write(tile[: min(left, len(tile))])


def _add_settings(writer: gguf.GGUFWriter, config: dict[str, int]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    alphabet = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in alphabet]
    letters = dict(zip(others, range(0x100, 0x200), strict=False))
    tokens = [chr(letters.get(byte, byte)) for byte in range(256)]
    tokens += [f"word{index}" for index in range(config["vocab_size"] - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * len(tokens))
    writer.add_eos_token_id(255)


def main() -> None:
    """Write one file into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mix", default="q4_k_m")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    write(options.shape, options.folder / f"model-{options.mix}.gguf", options.mix)


if __name__ == "__main__":
    main()
