import pytest
import torch

from martlet.bench.random_source import RandomSource
from martlet.memory.layout import TensorForm, lay_out_part, view_part
from martlet.models.config import load_architecture
from martlet.quantization.packing import padded_shape, unpack_tiles
from martlet.quantization.scheme import QuantizedTensor

T5 = {
    "model_type": "t5",
    "vocab_size": 640,
    "d_model": 128,
    "d_kv": 16,
    "d_ff": 256,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 100,
    "n_positions": 16,
    "n_embd": 40,
    "n_layer": 1,
    "n_head": 2,
}


def lay_out(name, tensors):
    """A part with int8 matrices, the rest float16."""
    forms = [TensorForm(t.name, t.shape, t.kind != "other") for t in tensors]
    return lay_out_part(name, name.removesuffix(".once"), forms, torch.float16)


def blocks_of(config):
    return {block.name: block for block in load_architecture(config).block_specs()}


def filled(config, name, **options):
    architecture = load_architecture(config)
    tensors = {block.name: block.tensors for block in architecture.block_specs()}
    layout = lay_out(name, tensors[name.removesuffix(".once")])
    out = torch.full((layout.nbytes,), 0xEE, dtype=torch.uint8)
    RandomSource(architecture, **options).fill(layout, out)
    return layout, out


def tiles_of(layout, out, suffix):
    weight = next(w for name, w in view_part(layout, out).items() if name.endswith(suffix))
    return weight.data, weight.scale, weight.shape


@pytest.mark.parametrize("name", ["fixed", "encoder.0", "decoder.1", "decoder.1.once"])
def test_the_same_seed_gives_the_same_part_and_another_seed_another(name):
    first, again, other = (filled(T5, name, seed=seed)[1] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_parts_and_tensors_differ_from_each_other():
    layout, out = filled(T5, "decoder.0")
    _, next_out = filled(T5, "decoder.1")
    assert not torch.equal(out, next_out)
    q, _, _ = tiles_of(layout, out, "SelfAttention.q.weight")
    k, _, _ = tiles_of(layout, out, "SelfAttention.k.weight")
    assert not torch.equal(q, k)


def test_integers_are_never_minus_128_and_spread_over_all_others():
    data = filled(T5, "decoder.0")
    tiles, _, _ = tiles_of(*data, "wi_0.weight")
    assert tiles.min() == 1
    assert tiles.max() == 255
    # 32768 uniform draws: the mean is within 0.4 of the middle by one standard error.
    assert abs(tiles.double().mean() - 128) < 2


def test_a_matrix_keeps_a_hidden_state_at_size_one():
    data = filled(T5, "decoder.0")
    for name in ("SelfAttention.q.weight", "wi_0.weight", "DenseReluDense.wo.weight"):
        tiles, scale, shape = tiles_of(*data, name)
        weight = unpack_tiles(tiles, *shape).double() * scale[: shape[0], None]
        hidden = torch.randn(256, shape[1], generator=torch.Generator().manual_seed(0)).double()
        # A sum over 128 or 256 inputs, averaged over thousands of outputs
        assert abs((hidden @ weight.T).std() - 1) < 0.1


def test_norms_are_ones_and_biases_zeros():
    layout, out = filled(GPT2, "decoder.0")
    vectors = {n: w for n, w in view_part(layout, out).items() if len(w.shape) == 1}
    assert {"ln_1.weight", "ln_1.bias", "attn.c_attn.bias"} <= set(vectors)
    for name, values in vectors.items():
        assert (values == (0 if name.endswith("bias") else 1)).all(), name


def test_padding_of_a_matrix_that_does_not_divide_into_tiles_is_weights_of_zero():
    data = filled(GPT2, "fixed")
    tiles, _, (rows, columns) = tiles_of(*data, "wte.weight")
    padded_rows, padded_columns = padded_shape(rows, columns)
    assert (padded_rows, padded_columns) != (rows, columns)
    whole = unpack_tiles(tiles, padded_rows, padded_columns)
    assert (whole[rows:] == 0).all()
    assert (whole[:, columns:] == 0).all()
    assert (whole[:rows, :columns] != 0).float().mean() > 0.9


def test_a_page_that_is_smaller_than_the_part_does_not_repeat_at_once():
    layout, out = filled(T5, "decoder.0", page_elements=1000)
    tiles, _, _ = tiles_of(layout, out, "wi_0.weight")
    assert not torch.equal(tiles[:1000], tiles[1000:2000])
    assert len(tiles.unique()) > 200


def test_plain_blocks_hold_what_the_architecture_names():
    blocks = blocks_of(T5)
    for quantize in ("int8", "none"):
        source = RandomSource(load_architecture(T5), quantize)
        for name, block in blocks.items():
            weights = source.block(name)
            assert {n: tuple(w.shape) for n, w in weights.items()} == {
                tensor.name: tensor.shape for tensor in block.tensors
            }
            for tensor in block.tensors:
                is_int8 = isinstance(weights[tensor.name], QuantizedTensor)
                assert is_int8 == (quantize == "int8" and tensor.kind != "other")


def test_float_and_int8_matrices_are_of_the_same_size():
    int8, plain = (
        RandomSource(load_architecture(T5), quantize).block("decoder.0")[
            "layer.0.SelfAttention.q.weight"
        ]
        for quantize in ("int8", "none")
    )
    assert abs(int8.dequantize().std() / plain.std() - 1) < 0.05


@pytest.mark.gpu
def test_parts_are_made_on_the_gpu_too():
    architecture = load_architecture(T5)
    tensors = blocks_of(T5)["decoder.0"].tensors
    layout = lay_out("decoder.0", tensors)
    outs = []
    for _ in range(2):
        out = torch.full((layout.nbytes,), 0xEE, dtype=torch.uint8, device="cuda")
        RandomSource(architecture).fill(layout, out)
        outs.append(out.cpu())
    assert torch.equal(*outs)
    tiles, scale, _ = tiles_of(layout, outs[0], "wi_0.weight")
    assert (tiles.min(), tiles.max()) == (1, 255)
    assert (scale > 0).all()
