from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from martlet.quantization.block_types import BLOCK_TYPES


def test_every_type_that_files_hold_has_its_published_name_and_size() -> None:
    published = {
        int(number): (number.name, *GGML_QUANT_SIZES[number])
        for number in GGMLQuantizationType
        if number.name != "Q8_1"  # never in a file; the package and ggml differ about its size
    }
    assert {number: tuple(kind) for number, kind in BLOCK_TYPES.items()} == published
