import pytest
import torch

from martlet.checkpoint.store import open_store
from martlet.compression.nearest import quantize_matrix
from martlet.engine import folder_source
from martlet.engine.folder_source import FolderSource
from martlet.engine.model_files import StoreFiles
from martlet.engine.parts import lay_out_parts
from martlet.errors import ModelFileError
from martlet.memory.layout import view_part
from martlet.models.config import load_architecture
from martlet.quantization.formats import INT4, INT8, WeightFormat
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


def source_of(store, device=CPU, progress=None):
    specs = load_architecture(store.config).block_specs()
    return FolderSource(StoreFiles(store), specs, device, progress)


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


@pytest.fixture(scope="module")
def float_folder(make_model):
    return make_model("gpt2", config=ODD, tokenizer=NO_TOKENIZER)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_part_holds_the_weights_of_the_folder(tiny_cpm2, dtype):
    store = open_store(tiny_cpm2)
    source = source_of(store)
    num_tiled = 0
    for layout in lay_out(store, dtype).values():
        stored = store.block(layout.block)
        for name, weight in filled(source, layout).items():
            assert_same(weight, stored[name], dtype)
            num_tiled += isinstance(weight, TiledTensor)
    assert num_tiled == 2 + 2 * 7 + 2 * 11  # tables; encoder blocks; decoder blocks


def test_a_float_folder_is_cast_to_the_type_of_the_activations(tiny_cpm1):
    store = open_store(tiny_cpm1)
    source = source_of(store)
    for layout in lay_out(store, torch.bfloat16).values():
        stored = store.block(layout.block)
        for name, weight in filled(source, layout).items():
            assert weight.dtype == torch.bfloat16
            assert_same(weight, stored[name], torch.bfloat16)


def test_a_matrix_that_is_no_whole_number_of_tiles_is_padded(odd_folder):
    store = open_store(odd_folder)
    layout = lay_out(store, torch.float16)["fixed"]
    table = filled(source_of(store), layout)["transformer.wte.weight"]
    stored = store.block("fixed")["transformer.wte.weight"]
    assert_same(table, stored, torch.float16)
    assert table.data.numel() == 112 * 64
    assert torch.equal(table.scale[101:], torch.ones(11))


# One, two, and all but the last of seven rows of tiles at a time.
@pytest.mark.parametrize("rows_at_a_time", [16, 32, 96])
def test_a_large_matrix_is_tiled_piece_by_piece(odd_folder, rows_at_a_time, monkeypatch):
    store = open_store(odd_folder)
    layout = lay_out(store, torch.float16)["fixed"]
    whole = filled(source_of(store), layout)["transformer.wte.weight"]
    monkeypatch.setattr(folder_source, "_PIECE_ELEMENTS", rows_at_a_time * 40)
    pieces = filled(source_of(store), layout)["transformer.wte.weight"]
    assert torch.equal(pieces.data, whole.data)
    assert torch.equal(pieces.scale, whole.scale)


@pytest.mark.parametrize(
    "format",
    [INT8, WeightFormat(4, 32), WeightFormat(4, 128, has_zeros=True), WeightFormat(8, 64)],
)
@pytest.mark.parametrize("rows_at_a_time", [16, 96, 4096])
def test_weights_become_integers_and_tiles_piece_by_piece(
    float_folder, format, rows_at_a_time, monkeypatch
):
    monkeypatch.setattr(folder_source, "_PIECE_ELEMENTS", rows_at_a_time * 40)
    store = open_store(float_folder)
    for layout in lay_out(store, torch.float16, format).values():
        stored = store.block(layout.block)
        for name, weight in filled(source_of(store), layout).items():
            is_matrix = isinstance(weight, TiledTensor)
            wanted = quantize_matrix(stored[name], format) if is_matrix else stored[name]
            assert_same(weight, wanted, torch.float16)


def test_integers_become_others_by_way_of_floats(odd_folder):
    store = open_store(odd_folder)
    for layout in lay_out(store, torch.float16, INT4).values():
        stored = store.block(layout.block)
        for name, weight in filled(source_of(store), layout).items():
            wanted = stored[name]
            if isinstance(weight, TiledTensor):
                wanted = quantize_matrix(wanted.dequantize(), INT4)
            assert_same(weight, wanted, torch.float16)


def test_a_weight_that_is_no_number_is_named_with_its_row(float_folder, monkeypatch):
    monkeypatch.setattr(folder_source, "_PIECE_ELEMENTS", 16 * 40)
    store = open_store(float_folder)
    files = StoreFiles(store)
    table = store.weight("fixed", "transformer.wte.weight").clone()
    table[37, 3] = torch.inf
    monkeypatch.setattr(files, "weight", lambda block, name: table)
    specs = load_architecture(store.config).block_specs()
    layout = lay_out(store, torch.float16, INT8)["fixed"]
    with pytest.raises(ModelFileError, match=r"wte\.weight, rows from 32 on: row 5 holds"):
        filled(FolderSource(files, specs, CPU), layout)


def test_progress_counts_the_bytes_of_the_files_once(float_folder):
    store = open_store(float_folder)
    seen = []
    source = source_of(store, progress=lambda *state: seen.append(state))
    layouts = lay_out(store, torch.float16, INT8)
    for _ in range(2):  # as where memory ran out and a smaller plan begins anew
        for layout in layouts.values():
            filled(source, layout)
    done = [state[0] for state in seen]
    half = len(done) // 2
    assert done[:half] == sorted(set(done[:half])) == done[half:]
    assert {total for _, total, _ in seen} == {done[-1]}
    assert done[-1] == sum(w.nbytes for b in store.block_names for w in store.block_weights(b))


@pytest.mark.gpu
@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_tiles_made_on_the_gpu_are_those_made_on_the_cpu(tiny_cpm2, target):
    store = open_store(tiny_cpm2)
    here, there = source_of(store), source_of(store, torch.device("cuda"))
    for layout in lay_out(store, torch.float16).values():
        outs = []
        for source, device in ((here, "cpu"), (there, target)):
            # Bytes between the tensors are nobody's: alike from the start.
            out = torch.zeros(layout.nbytes, dtype=torch.uint8, device=device)
            source.fill(layout, out)
            outs.append(out.cpu())
        assert torch.equal(*outs), layout.name
