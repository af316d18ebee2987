"""GGUF files as they lie in the hub's cache: links, and parts that are links too."""

import gguf
import numpy as np
import pytest

from martlet.api.opening import open_files
from martlet.hub.hub_id import parse_hub_id
from martlet.hub.licence import read_licence
from martlet.hub.pull import pull

WIDTH, FEED_FORWARD, VOCABULARY = 32, 64, 40
SHAPES = {
    "token_embd": (VOCABULARY, WIDTH),
    "output_norm": (WIDTH,),
    "blk.0.attn_norm": (WIDTH,),
    "blk.0.attn_q": (WIDTH, WIDTH),
    "blk.0.attn_k": (WIDTH, WIDTH),
    "blk.0.attn_v": (WIDTH, WIDTH),
    "blk.0.attn_output": (WIDTH, WIDTH),
    "blk.0.ffn_norm": (WIDTH,),
    "blk.0.ffn_gate": (FEED_FORWARD, WIDTH),
    "blk.0.ffn_up": (FEED_FORWARD, WIDTH),
    "blk.0.ffn_down": (WIDTH, FEED_FORWARD),
}


@pytest.fixture
def parts(tmp_path):
    """A Llama of one layer in files of at most five tensors."""
    writer = gguf.GGUFWriter(tmp_path / "tiny-F32.gguf", "llama", split_max_tensors=5)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_license("apache-2.0")
    for name, shape in SHAPES.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {path.name: path.read_bytes() for path in sorted(tmp_path.glob("*.gguf"))}


def test_a_model_in_parts_is_read_through_the_links_of_the_cache(hub, settings, parts):
    assert len(parts) > 1
    hub.add("some/parts", parts)
    plan = pull(parse_hub_id("some/parts"), settings)
    assert plan.path.name == next(iter(parts))
    assert plan.path.is_symlink()
    files = open_files(plan.path)
    assert files.family == "llama"
    assert read_licence(plan.path) == "apache-2.0"
    weights = [weight for block in files.block_names for weight in files.block_weights(block)]
    assert sum(weight.numel for weight in weights) == sum(
        int(np.prod(shape)) for shape in SHAPES.values()
    )
