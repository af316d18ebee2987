import pytest
import torch

from martlet.checkpoint.store import open_store
from martlet.engine.loaded_forms import LoadedForms
from martlet.engine.loaded_weights import LoadedWeights
from martlet.engine.model_files import StoreFiles
from martlet.models.config import load_architecture
from martlet.quantization.formats import parse_format

SMALL = {"vocab_size": 101, "n_embd": 40, "n_layer": 1}


@pytest.fixture(scope="module")
def folders(make_model):
    def make(quantize):
        return make_model("gpt2", quantize=quantize, config=SMALL, tokenizer=("cpm1", {}))

    return {quantize: make(quantize) for quantize in ("none", "int8", "int4-g128")}


def forms_of(folder, quantize):
    store = open_store(folder)
    return LoadedForms(
        StoreFiles(store), tuple(load_architecture(store.config).block_specs()), quantize
    )


def matrix_formats(forms):
    """The names of the formats that matrices take; everything else has none."""
    names = set()
    for block in forms.specs:
        for tensor in block.tensors:
            format = forms.format_of(block, tensor)
            if tensor.kind == "other":
                assert format is None
            else:
                names.add(format.name if format else "none")
    return names


@pytest.mark.parametrize(
    ("stored", "quantize", "loaded"),
    [
        ("none", None, "none"),
        ("none", "int4", "int4-g32"),
        ("none", "int8-g64", "int8-g64"),
        ("int8", None, "int8"),
        ("int8", "int8", "int8"),
        ("int8", "int4-g64-asym", "int4-g64-asym"),
        ("int8", "none", "none"),
        ("int4-g128", None, "int4-g128"),
        ("int4-g128", "int4", "int4-g128"),  # what the folder is called
        ("int4-g128", "int4-g128", "int4-g128"),
        ("int4-g128", "int4-g32", "int4-g32"),
        ("int4-g128", "int8", "int8"),
        ("int4-g128", "none", "none"),
    ],
)
def test_matrices_take_the_format_that_is_asked_for(folders, stored, quantize, loaded):
    forms = forms_of(folders[stored], quantize)
    assert matrix_formats(forms) == {loaded}
    assert forms.has_int4 == loaded.startswith("int4")
    assert forms.quantize == (quantize or stored.partition("-")[0])
    loaded_weights = LoadedWeights(forms, torch.float32)
    for block in forms.specs:
        weights = forms.files.store.block(block.name)
        result = dict(loaded_weights.block(block.name))
        for tensor in block.tensors:
            weight = result[tensor.name]
            format = None if isinstance(weight, torch.Tensor) else weight.format
            assert format == forms.format_of(block, tensor)
            if stored == loaded or tensor.kind == "other":
                # Not even copied: the mapped file itself.
                ours, theirs = (
                    w if isinstance(w, torch.Tensor) else w.data
                    for w in (weight, weights[tensor.name])
                )
                assert ours.data_ptr() == theirs.data_ptr()
        nbytes = sum(
            2 * w.numel() if isinstance(w, torch.Tensor) else w.nbytes for w in result.values()
        )
        assert forms.nbytes(block, torch.float16) == nbytes


def test_what_the_folder_is_stored_in_is_never_touched(folders):
    for stored, quantize in (("none", "none"), ("int8", "int8"), ("int4-g128", "int4")):
        assert not forms_of(folders[stored], quantize).is_changed
        assert not forms_of(folders[stored], None).is_changed


def test_int4_means_groups_of_32(folders):
    forms = forms_of(folders["none"], "int4")
    block = forms.specs[1]
    matrix = next(tensor for tensor in block.tensors if tensor.kind == "linear")
    assert forms.format_of(block, matrix) == parse_format("int4-g32")
