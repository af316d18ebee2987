import pytest
import torch

from martlet.checkpoint.store import open_store
from martlet.compression.absmax import quantize_rows
from martlet.compression.groups import quantize_groups
from martlet.compression.requantize import in_formats
from martlet.engine import folder_source
from martlet.engine.folder_source import FolderSource
from martlet.engine.parts import lay_out_parts
from martlet.memory.layout import view_part
from martlet.models.config import load_architecture
from martlet.quantization.formats import INT8, WeightFormat
from martlet.quantization.scheme import GroupedTensor, TiledTensor

CPU = torch.device("cpu")
ODD = {"vocab_size": 101, "n_embd": 40, "n_layer": 1}
NO_TOKENIZER = ("cpm1", {})


def lay_out(store, dtype, format=None):
    """The parts of a folder; ``format`` None keeps the matrices as they are stored."""

    def stored(spec, tensor):
        weight = store.block(spec.name)[tensor.name]
        return None if isinstance(weight, torch.Tensor) else weight.format

    def given(_, tensor):
        return None if tensor.kind == "other" else format

    specs = load_architecture(store.config).block_specs()
    return lay_out_parts(specs, stored if format is None else given, dtype)


def filled(source, layout, device=CPU):
    """The weights of a part, in memory that held something else before."""
    out = torch.full((layout.nbytes,), 0xEE, dtype=torch.uint8, device=device)
    source.fill(layout, out)
    return view_part(layout, out.cpu())


def assert_same(weight, stored, dtype):
    if isinstance(weight, TiledTensor):
        plain = weight.untiled()
        assert torch.equal(plain.data, stored.data)
        if isinstance(stored, GroupedTensor):
            assert torch.equal(plain.scale, stored.scale)
            assert torch.equal(plain.row_scale, stored.row_scale)
            assert (plain.zero is None) == (stored.zero is None)
            assert plain.zero is None or torch.equal(plain.zero, stored.zero)
        else:
            assert torch.equal(plain.scale, stored.scale.float())
        # Rows that only pad are multiplied too: their scale is a number.
        assert torch.isfinite(weight.scale).all()
    else:
        assert torch.equal(weight, stored.to(dtype))


@pytest.fixture(scope="module")
def odd_folder(make_model):
    """Matrices whose sides are no whole tiles, int8: a table of 101 x 40 among them."""
    return make_model("gpt2", quantize="int8", config=ODD, tokenizer=NO_TOKENIZER)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_part_holds_the_weights_of_the_folder(tiny_cpm2, dtype):
    store = open_store(tiny_cpm2)
    source = FolderSource(store, CPU)
    num_tiled = 0
    for layout in lay_out(store, dtype).values():
        stored = store.block(layout.block)
        for name, weight in filled(source, layout).items():
            assert_same(weight, stored[name], dtype)
            num_tiled += isinstance(weight, TiledTensor)
    assert num_tiled == 2 + 2 * 7 + 2 * 11  # tables; encoder blocks; decoder blocks


def test_a_float_folder_is_cast_to_the_type_of_the_activations(tiny_cpm1):
    store = open_store(tiny_cpm1)
    source = FolderSource(store, CPU)
    for layout in lay_out(store, torch.bfloat16).values():
        stored = store.block(layout.block)
        for name, weight in filled(source, layout).items():
            assert weight.dtype == torch.bfloat16
            assert_same(weight, stored[name], torch.bfloat16)


def test_a_matrix_that_is_no_whole_number_of_tiles_is_padded(odd_folder):
    store = open_store(odd_folder)
    layout = lay_out(store, torch.float16)["fixed"]
    table = filled(FolderSource(store, CPU), layout)["transformer.wte.weight"]
    stored = store.block("fixed")["transformer.wte.weight"]
    assert_same(table, stored, torch.float16)
    assert table.data.numel() == 112 * 64
    assert torch.equal(table.scale[101:], torch.ones(11))


# One, two, and all but the last of seven rows of tiles at a time.
@pytest.mark.parametrize("rows_at_a_time", [16, 32, 96])
def test_a_large_matrix_is_tiled_piece_by_piece(odd_folder, rows_at_a_time, monkeypatch):
    store = open_store(odd_folder)
    layout = lay_out(store, torch.float16)["fixed"]
    whole = filled(FolderSource(store, CPU), layout)["transformer.wte.weight"]
    monkeypatch.setattr(folder_source, "_PIECE_BYTES", rows_at_a_time * 64)
    pieces = filled(FolderSource(store, CPU), layout)["transformer.wte.weight"]
    assert torch.equal(pieces.data, whole.data)
    assert torch.equal(pieces.scale, whole.scale)


@pytest.mark.parametrize(
    "format", [WeightFormat(4, 32), WeightFormat(4, 128, has_zeros=True), WeightFormat(8, 64)]
)
@pytest.mark.parametrize("rows_at_a_time", [16, 96, 4096])
def test_weights_with_groups_are_tiled_piece_by_piece(
    odd_folder, format, rows_at_a_time, monkeypatch
):
    store = open_store(odd_folder)
    weights = {}

    def quantized(name, stored):
        weights[name] = {
            n: w if isinstance(w, torch.Tensor) else quantize_groups(w.dequantize(), format)
            for n, w in stored.items()
        }
        return weights[name]

    monkeypatch.setattr(folder_source, "_PIECE_BYTES", rows_at_a_time * 64 * 8 // format.bits)
    source = FolderSource(store, CPU, quantized)
    for layout in lay_out(store, torch.float16, format).values():
        for name, weight in filled(source, layout).items():
            assert_same(weight, weights[layout.block][name], torch.float16)


def test_float_weights_become_integers_while_they_are_loaded(tiny_cpm1):
    store = open_store(tiny_cpm1)
    formats = {
        spec.name: {t.name: None if t.kind == "other" else INT8 for t in spec.tensors}
        for spec in load_architecture(store.config).block_specs()
    }
    source = FolderSource(store, CPU, lambda name, w: in_formats(w, formats[name], CPU))
    for layout in lay_out(store, torch.float16, INT8).values():
        stored = store.block(layout.block)
        for name, weight in filled(source, layout).items():
            is_matrix = isinstance(weight, TiledTensor)
            wanted = quantize_rows(stored[name]) if is_matrix else stored[name]
            assert_same(weight, wanted, torch.float16)


def test_a_block_of_two_parts_is_transformed_once(tiny_eva):
    store = open_store(tiny_eva)
    seen = []

    def note(name, weights):
        seen.append(name)
        return weights

    source = FolderSource(store, CPU, note)
    for layout in lay_out(store, torch.float16).values():
        filled(source, layout)
    assert seen == ["fixed", "encoder.0", "encoder.1", "decoder.0", "decoder.1"]


@pytest.mark.gpu
@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_tiles_made_on_the_gpu_are_those_made_on_the_cpu(tiny_cpm2, target):
    store = open_store(tiny_cpm2)
    here, there = FolderSource(store, CPU), FolderSource(store, torch.device("cuda"))
    for layout in lay_out(store, torch.float16).values():
        outs = []
        for source, device in ((here, "cpu"), (there, target)):
            # Bytes between the tensors are nobody's: alike from the start.
            out = torch.zeros(layout.nbytes, dtype=torch.uint8, device=device)
            source.fill(layout, out)
            outs.append(out.cpu())
        assert torch.equal(*outs), layout.name
