import numpy as np
import pytest
import torch
from gguf import quants
from gguf.constants import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from martlet.conversion.gguf_blocks import FLOATS, FORMATS, grouped_weight
from martlet.conversion.gguf_values import PARTS, values
from martlet.device.threads import cpu_threads
from martlet.errors import ModelFileError
from martlet.quantization.block_types import BLOCK_TYPES, BlockType

KINDS = {kind.name: kind for kind in BLOCK_TYPES.values()}
# Where the float16 factors of a block stand.
FACTORS = {
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q5_0": (0,),
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}


@pytest.fixture(autouse=True, params=["torch", "native"])
def _route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch as small matrices, or by native code as large ones."""
    least = 0 if request.param == "native" else 1 << 60
    monkeypatch.setattr("martlet.conversion.gguf_blocks._NATIVE_FROM_ELEMENTS", least)


EXACT = ("Q8_0", "Q4_0", "Q5_0")
ASYMMETRIC = ("Q4_1", "Q4_K")


def random_rows(
    kind: BlockType, rows: int = 8, blocks: int = 3, factors: tuple[float, ...] = (), seed: int = 0
) -> Tensor:
    """Blocks of random bytes with usual factors, or with some of these."""
    draw = np.random.default_rng(seed)
    data = draw.integers(0, 256, (rows, blocks, kind.nbytes), dtype=np.uint8)
    for index, place in enumerate(FACTORS[kind.name]):
        if factors:
            chosen = draw.choice(np.array(factors), (rows, blocks))
        else:
            chosen = (
                draw.uniform(0.001, 0.02, (rows, blocks))
                * (1, -8 if "_1" in kind.name else 1)[index]
            )
        raw = chosen.astype(np.float16)[..., None].view(np.uint8)
        data[..., place : place + 2] = raw
    return torch.from_numpy(data.reshape(rows, -1))


def published(data: Tensor, kind: BlockType) -> Tensor:
    with np.errstate(all="ignore"):
        numbers = quants.dequantize(data.numpy(), GGMLQuantizationType[kind.name])
    return torch.from_numpy(np.array(numbers, dtype=np.float32))


def test_every_type_that_is_read_is_checked_here() -> None:
    assert set(FACTORS) == set(FORMATS)
    assert not set(FACTORS) & set(FLOATS)


@pytest.mark.parametrize("name", PARTS)
def test_blocks_have_the_numbers_that_the_package_of_the_format_gives(name: str) -> None:
    kind = KINDS[name]
    data = random_rows(kind, rows=64)
    ours = values(PARTS[name](data.view(-1, kind.nbytes))).view(64, -1)
    torch.testing.assert_close(ours, published(data, kind), rtol=0, atol=0)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(
    "factors", [(), (0.0, 1.0), (6e-8, -6e-5, 1e-3), (65504.0, -3.0), (65504.0, 6e-8, 0.0)]
)
def test_moved_integers_stand_for_the_same_numbers(name: str, factors: tuple[float, ...]) -> None:
    kind = KINDS[name]
    data = random_rows(kind, factors=factors)
    weight = grouped_weight(data, kind, "w")
    assert weight.format == FORMATS[name]
    assert torch.equal(weight.dequantize(), published(data, kind))


factor = st.floats(width=16, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("name", ASYMMETRIC)
@settings(max_examples=60, deadline=None)
@given(st.tuples(factor, factor, factor), st.integers(0, 1000))
def test_kept_integers_with_zeros_are_off_by_two_roundings_to_float16(
    name: str, factors: tuple[float, ...], seed: int
) -> None:
    kind = KINDS[name]
    data = random_rows(kind, rows=4, blocks=2, factors=factors, seed=seed)
    weight = grouped_weight(data, kind, "w")
    assert weight.format.name == "int4-g32-asym"
    expected = published(data, kind).view(4, -1, 32)
    error = (weight.dequantize().view(4, -1, 32) - expected).abs()
    # |w - lowest| and |lowest| are rounded by 2**-11 each; scales far below the largest of their
    # row lose the bits that float16 does not have there.
    lowest = lowest_of(data, kind)
    bound = 2.0**-11 * 1.01 * ((expected - lowest).abs() + 2 * lowest.abs())
    largest = torch.maximum((expected - lowest).abs(), lowest.abs()).amax(dim=(1, 2), keepdim=True)
    assert bool((error <= bound + largest * 2.0**-21 + 1e-30).all())


def lowest_of(data: Tensor, kind: BlockType) -> Tensor:
    """What the integer 0 stands for in each group: the same blocks with all integers 0."""
    empty = data.clone().view(-1, kind.nbytes)
    empty[:, 16 if kind.name == "Q4_K" else 4 :] = 0
    return published(empty.view(data.shape), kind).view(data.shape[0], -1, 32)


@pytest.mark.parametrize("name", PARTS)
def test_rounded_numbers_are_off_by_half_a_step_of_their_group(name: str) -> None:
    kind = KINDS[name]
    for factors in ((), (0.0, 0.01), (65504.0, 1e-3), (6e-8, 6e-5)):
        data = random_rows(kind, factors=factors)
        weight = grouped_weight(data, kind, "w")
        assert weight.format.name == "int8-g32"
        expected = published(data, kind).view(8, -1, 32)
        error = (weight.dequantize().view(8, -1, 32) - expected).abs()
        largest = expected.abs().amax(dim=2, keepdim=True)
        floor = expected.abs().amax(dim=(1, 2), keepdim=True) * 2.0**-21
        assert bool((error <= largest / 253 + floor).all())


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("Q4_1", 4e-4),
        ("Q4_K", 5e-4),
        ("Q5_1", 6e-3),
        ("Q5_K", 6e-3),
        ("Q6_K", 6e-3),
        ("Q3_K", 6e-3),
        ("Q2_K", 6e-3),
    ],
)
def test_the_error_of_the_whole_matrix_is_as_the_docs_say(name: str, limit: float) -> None:
    kind = KINDS[name]
    data = random_rows(kind, rows=64)
    expected = published(data, kind)
    error = (grouped_weight(data, kind, "w").dequantize() - expected).norm() / expected.norm()
    assert limit / 4 < float(error) < limit


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_scale_that_is_no_number_is_refused_by_row(name: str, value: float) -> None:
    kind = KINDS[name]
    data = random_rows(kind, rows=4)
    place = 2 * kind.nbytes + FACTORS[name][-1]
    data[2, place : place + 2] = torch.from_numpy(np.array([value], np.float16).view(np.uint8))
    with pytest.raises(ModelFileError, match=r"blk\.0\.x: row 2 has a scale that is infinite"):
        grouped_weight(data, kind, "blk.0.x")


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_worked_on_in_pieces_that_do_not_show(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS[name]
    data = random_rows(kind, rows=7)
    whole = grouped_weight(data, kind, "w")
    monkeypatch.setattr("martlet.conversion.gguf_blocks._TILE_ELEMENTS", 1)
    pieces = grouped_weight(data, kind, "w")
    assert torch.equal(pieces.data, whole.data)
    assert torch.equal(pieces.dequantize(), whole.dequantize())
    assert pieces.data.is_contiguous()


@pytest.mark.parametrize("is_inference", [True, False])
def test_several_threads_give_what_one_gives(
    monkeypatch: pytest.MonkeyPatch, is_inference: bool
) -> None:
    monkeypatch.setattr("martlet.conversion.gguf_blocks._TILE_ELEMENTS", 1)
    data = random_rows(KINDS["Q4_K"], rows=40)
    with cpu_threads(1):
        alone = grouped_weight(data, KINDS["Q4_K"], "w")
    with cpu_threads(3), torch.inference_mode(is_inference):
        assert torch.equal(
            grouped_weight(data, KINDS["Q4_K"], "w").dequantize(), alone.dequantize()
        )
        data[39, 0:2] = 255  # the bits of a number that is none
        with pytest.raises(ModelFileError, match="w: row 39 has a scale"):
            grouped_weight(data, KINDS["Q4_K"], "w")
        assert torch.get_num_threads() == 3
