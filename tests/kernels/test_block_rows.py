"""The native code for blocks of GGUF files gives the numbers that torch's operations give."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from martlet.conversion import gguf_blocks
from martlet.conversion.gguf_blocks import FORMATS, fill_by_torch, grouped_weight, new_weight
from martlet.device.threads import cpu_threads
from martlet.errors import ModelFileError
from martlet.kernels.cpu import block_rows, native
from martlet.kernels.cpu.block_rows import TYPES, BlockReader, find_block_reader
from martlet.quantization.block_types import BLOCK_TYPES
from martlet.quantization.scheme import GroupedTensor

pytestmark = pytest.mark.skipif(native.find_compiler() is None, reason="no C compiler")
KINDS = {kind.name: kind for kind in BLOCK_TYPES.values()}


@pytest.fixture(params=["this processor", "any processor"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> BlockReader:
    """As it is compiled here, or without instructions for float16 and wide vectors."""
    if request.param == "any processor":
        flags = tuple(flag for flag in native._FLAGS if flag != "-march=native")
        monkeypatch.setattr(native, "_FLAGS", flags)
    library, _ = native.load_native("block_rows")
    return block_rows.native_block_reader(library)


@pytest.fixture(autouse=True)
def _tried_anew() -> Iterator[None]:
    yield
    gguf_blocks._native_reader.cache_clear()
    find_block_reader.cache_clear()


def by_torch(data: Tensor, name: str) -> GroupedTensor:
    kind = KINDS[name]
    columns = data.shape[1] // kind.nbytes * kind.elements
    weight = new_weight(torch.Size((len(data), columns)), kind)
    fill_by_torch(weight, data, kind, "w")
    return weight


def assert_same(one: GroupedTensor, other: GroupedTensor) -> None:
    """Every number; a zero may have either sign."""
    assert torch.equal(one.data, other.data)
    assert torch.equal(one.row_scale, other.row_scale)
    assert torch.equal(one.scale, other.scale)
    assert (one.zero is None) == (other.zero is None)
    if one.zero is not None and other.zero is not None:
        assert torch.equal(one.zero, other.zero)


def test_it_has_every_type() -> None:
    assert set(TYPES) == set(FORMATS)


@pytest.mark.parametrize("name", TYPES)
def test_blocks_of_any_bytes_give_the_same_numbers_or_the_same_row(
    name: str, reader: BlockReader
) -> None:
    kind = KINDS[name]

    @settings(max_examples=60)
    @given(
        st.integers(0, 1 << 30), st.integers(1, 9), st.integers(1, 3), st.sampled_from([63, 255])
    )
    def check(seed: int, rows: int, blocks: int, mask: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        data = torch.randint(0, 256, (rows, blocks * kind.nbytes), generator=draw) & mask
        # Rows of small, of like and of no numbers, which random bytes hardly have.
        data[seed % rows :: 3, :: 1 + seed % 5] = 0
        data = data.to(torch.uint8)
        columns = blocks * kind.elements
        ours = new_weight(torch.Size((rows, columns)), kind)
        with cpu_threads(1 + seed % 3):
            bad_row = reader(data, kind, ours)
        if bad_row is None:
            assert_same(ours, by_torch(data, name))
            return
        with pytest.raises(ModelFileError, match=f"w: row {bad_row} has a scale"):
            by_torch(data, name)

    check()


@pytest.mark.parametrize("name", ["Q4_1", "Q4_K"])
def test_groups_that_are_one_number_all_over_are_found_alike(
    name: str, reader: BlockReader
) -> None:
    kind = KINDS[name]
    numbers = [0.0, 6e-8, -6e-8, 1e-3, -1e-3, 0.5, 1.0, 3.0, 60000.0, 65504.0, -65504.0]
    pairs = torch.tensor([(step, least) for step in numbers for least in numbers])
    data = (torch.arange(len(pairs) * 2 * kind.nbytes) * 2654435761 >> 7).to(torch.uint8)
    data = data.view(len(pairs), 2, kind.nbytes)
    data[:, 0, :4] = pairs.to(torch.float16).view(torch.uint8)
    data[:, 1, :4] = pairs.flip(0).to(torch.float16).view(torch.uint8)
    data = data.view(len(pairs), -1)
    ours = new_weight(torch.Size((len(data), 2 * kind.elements)), kind)
    assert reader(data, kind, ours) is None
    assert_same(ours, by_torch(data, name))


def test_large_matrices_are_read_by_it_and_small_ones_by_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def not_called(*_: object) -> None:
        raise AssertionError("torch was asked")

    kind = KINDS["Q8_0"]
    small = torch.zeros(2, kind.nbytes, dtype=torch.uint8)
    large = torch.zeros(1024, 32 * kind.nbytes, dtype=torch.uint8)
    whole = grouped_weight(large, kind, "w")
    grouped_weight(small, kind, "w")
    monkeypatch.setattr(gguf_blocks, "fill_by_torch", not_called)
    assert_same(grouped_weight(large, kind, "w"), whole)
    with pytest.raises(AssertionError, match="torch was asked"):
        grouped_weight(small, kind, "w")


def test_code_that_gives_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(data: Tensor, kind: object, weight: GroupedTensor) -> None:
        weight.data.zero_()
        weight.scale.fill_(1)
        weight.row_scale.fill_(1)

    gguf_blocks._native_reader.cache_clear()
    monkeypatch.setattr(gguf_blocks, "find_block_reader", lambda: wrong)
    assert gguf_blocks._native_reader(KINDS["Q8_0"]) is None


def test_native_code_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    find_block_reader.cache_clear()
    monkeypatch.setenv(block_rows.SWITCH, "0")
    assert find_block_reader() is None
