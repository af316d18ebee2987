import pytest
import torch

from martlet.bench.random_source import RandomSource
from martlet.memory.layout import TensorForm, lay_out_part, view_part
from martlet.models.config import load_architecture
from martlet.quantization.formats import INT8, parse_format
from martlet.quantization.packing import padded_shape, unpack_tiles

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


FORMATS = ("int8", "int8-g64", "int4", "int4-g128", "int4-g32-asym")


def lay_out(name, tensors, format=INT8):
    """A part with matrices of integers, the rest float16."""
    forms = [TensorForm(t.name, t.shape, None if t.kind == "other" else format) for t in tensors]
    return lay_out_part(name, name.removesuffix(".once"), forms, torch.float16)


def blocks_of(config):
    return {block.name: block for block in load_architecture(config).block_specs()}


def filled(config, name, format=INT8, **options):
    architecture = load_architecture(config)
    tensors = {block.name: block.tensors for block in architecture.block_specs()}
    layout = lay_out(name, tensors[name.removesuffix(".once")], format)
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


# The last of them has matrices that are no whole tiles, and are packed.
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("config", "suffix"), [(T5, "wi_0.weight"), (GPT2, "c_fc.weight")])
def test_a_matrix_keeps_a_hidden_state_at_size_one(config, suffix, name):
    layout, out = filled(config, "decoder.0", parse_format(name))
    weight = next(w for n, w in view_part(layout, out).items() if n.endswith(suffix)).dequantize()
    hidden = torch.randn(256, weight.shape[1], generator=torch.Generator().manual_seed(0))
    # A sum over 40 or 128 inputs, averaged over thousands of outputs
    assert abs((hidden @ weight.T).std() - 1) < 0.1
    # What all inputs have in common is no larger in the outputs.
    shared = weight.sum(1) / weight.shape[1] ** 0.5
    assert abs(shared.mean()) < 0.3


def test_integers_of_4_bits_and_scales_of_groups_are_spread_over_all_values():
    format = parse_format("int4-g32-asym")
    layout, out = filled(T5, "decoder.0", format)
    weight = next(w for n, w in view_part(layout, out).items() if n.endswith("wi_0.weight"))
    plain = weight.untiled()
    assert sorted(plain.integers().unique().tolist()) == list(range(16))
    assert 0.4 < (plain.scale > 0).float().mean() < 0.6
    assert len(plain.scale.unique()) > 100
    assert (plain.zero == 7.5).all()
    assert (plain.row_scale.log2() % 1 == 0).all()


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
    for quantize in (*FORMATS, "none"):
        source = RandomSource(load_architecture(T5), quantize)
        for name, block in blocks.items():
            weights = source.block(name)
            assert {n: tuple(w.shape) for n, w in weights.items()} == {
                tensor.name: tensor.shape for tensor in block.tensors
            }
            for tensor in block.tensors:
                weight = weights[tensor.name]
                format = None if isinstance(weight, torch.Tensor) else weight.format
                wanted = None if tensor.kind == "other" else parse_format(quantize)
                assert format == wanted, (quantize, tensor.name)


@pytest.mark.parametrize("quantize", FORMATS)
def test_matrices_of_floats_and_integers_are_of_the_same_size(quantize):
    integers, plain = (
        RandomSource(load_architecture(T5), form).block("decoder.0")[
            "layer.0.SelfAttention.q.weight"
        ]
        for form in (quantize, "none")
    )
    assert abs(integers.dequantize().std() / plain.std() - 1) < 0.1


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
