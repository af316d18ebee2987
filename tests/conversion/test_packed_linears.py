"""GPTQ and AWQ linears against packing and unpacking by the formulas, one integer at a time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from martlet.conversion.awq import awq_integers, awq_zeros
from martlet.conversion.gptq import follows_groups, gptq_integers, gptq_zeros
from martlet.conversion.packed_linears import PackedLinears
from martlet.conversion.packed_settings import PackedSettings
from martlet.conversion.table import safetensors_table
from martlet.errors import ModelFileError
from martlet.quantization.nibbles import unpack_nibbles

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def signed(words: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(words.astype(np.uint32).view(np.int32))


def unsigned(words: torch.Tensor) -> np.ndarray:
    return words.numpy().view(np.uint32)


def pack_gptq(q: np.ndarray, zero: np.ndarray, bits: int, *, offset: int):
    """q (out, in) and zero (out, groups) to qweight (in * bits / 32, out), qzeros."""
    in_word = 32 // bits
    out_features, in_features = q.shape
    words = np.zeros((in_features // in_word, out_features), dtype=np.uint64)
    for k in range(in_features):
        for n in range(out_features):
            words[k // in_word, n] |= np.uint64(int(q[n, k]) << bits * (k % in_word))
    zeros = np.zeros((zero.shape[1], out_features // in_word), dtype=np.uint64)
    for g in range(zero.shape[1]):
        for n in range(out_features):
            stored = (int(zero[n, g]) - offset) % (1 << bits)
            zeros[g, n // in_word] |= np.uint64(stored << bits * (n % in_word))
    return signed(words), signed(zeros)


def pack_awq(q: np.ndarray, zero: np.ndarray):
    """q (out, in) and zero (out, groups) to qweight (in, out / 8), qzeros."""
    packed = []
    for matrix in (q, zero):
        words = np.zeros((matrix.shape[1], matrix.shape[0] // 8), dtype=np.uint64)
        for k in range(matrix.shape[1]):
            for n in range(matrix.shape[0]):
                place = AWQ_ORDER.index(n % 8)
                words[k, n // 8] |= np.uint64(int(matrix[n, k]) << 4 * place)
        packed.append(signed(words))
    return packed[0], packed[1]


def plain_gptq(tensors, stem: str, bits: int, group_size: int, *, offset: int) -> np.ndarray:
    """The weight in float64, (out, in), by the formula alone."""
    in_word, mask = 32 // bits, (1 << bits) - 1
    words, zeros = (unsigned(tensors[stem + name]) for name in ("qweight", "qzeros"))
    scales = tensors[stem + "scales"].double().numpy()
    in_features, out_features = words.shape[0] * in_word, words.shape[1]
    weight = np.zeros((out_features, in_features))
    for k in range(in_features):
        g = 0 if group_size == -1 else k // group_size
        for n in range(out_features):
            q = int(words[k // in_word, n]) >> bits * (k % in_word) & mask
            zero = ((int(zeros[g, n // in_word]) >> bits * (n % in_word)) + offset) & mask
            weight[n, k] = (q - zero) * scales[g, n]
    return weight


def plain_awq(tensors, stem: str, group_size: int) -> np.ndarray:
    """The weight in float64, (out, in), by the formula alone."""
    words, zeros = (unsigned(tensors[stem + name]) for name in ("qweight", "qzeros"))
    scales = tensors[stem + "scales"].double().numpy()
    in_features, out_features = words.shape[0], words.shape[1] * 8
    weight = np.zeros((out_features, in_features))
    for k in range(in_features):
        g = 0 if group_size == -1 else k // group_size
        for n in range(out_features):
            shift = 4 * AWQ_ORDER.index(n % 8)
            q = int(words[k, n // 8]) >> shift & 15
            zero = int(zeros[g, n // 8]) >> shift & 15
            weight[n, k] = (q - zero) * scales[g, n]
    return weight


def test_integers_of_four_bits_lie_as_ours_do():
    q = np.random.default_rng(0).integers(0, 16, (24, 64))
    words, _ = pack_gptq(q, q[:, :1], 4, offset=0)
    assert np.array_equal(unpack_nibbles(gptq_integers(words, 4), 64).numpy(), q)


def test_integers_of_eight_bits_come_less_128():
    q = np.random.default_rng(0).integers(0, 256, (8, 32))
    q[0, :2] = 0, 255
    words, _ = pack_gptq(q, q[:, :1], 8, offset=0)
    assert np.array_equal(gptq_integers(words, 8).numpy(), q - 128)


def test_a_word_begins_with_its_first_input():
    # 0x87654321: the first of eight inputs has 1, the last 8.
    assert unpack_nibbles(gptq_integers(signed(np.array([[0x87654321]])), 4), 8).tolist() == [
        [1, 2, 3, 4, 5, 6, 7, 8]
    ]


def test_zeros_get_back_what_the_first_format_takes_off_and_none_runs_into_its_neighbour():
    zero = np.random.default_rng(1).integers(0, 16, (16, 3))
    zero[3] = 0  # stored as 15
    for offset in (0, 1):
        _, words = pack_gptq(np.zeros((16, 8), dtype=int), zero, 4, offset=offset)
        assert np.array_equal(gptq_zeros(words, 4, offset).numpy(), zero)


def test_groups_are_followed_only_where_neighbours_share_them():
    in_order = torch.arange(96, dtype=torch.int32) // 32
    assert follows_groups(in_order, 32)
    assert not follows_groups(in_order.flip(0), 32)
    assert follows_groups(torch.zeros(96, dtype=torch.int32), None)


def test_integers_and_zeros_lie_as_ours_do_also_past_what_is_unpacked_at_a_time():
    random = np.random.default_rng(0)
    q, zero = random.integers(0, 16, (1048, 6)), random.integers(0, 16, (1048, 2))
    words, zeros = pack_awq(q, zero)
    assert np.array_equal(unpack_nibbles(awq_integers(words), 6).numpy(), q)
    assert np.array_equal(awq_zeros(zeros).numpy(), zero)


def test_even_outputs_of_a_word_stand_before_the_odd_ones():
    # 0x75316420: output n has the value n.
    words = signed(np.array([[0x75316420], [0x75316420]]))
    assert unpack_nibbles(awq_integers(words), 2).tolist() == [[n, n] for n in range(8)]


# Whole linears

OUT, IN = 24, 96


def linear(method: str, **changes) -> tuple[PackedSettings, dict[str, torch.Tensor]]:
    """Settings and tensors of a linear named "x." with random integers, zeros and scales."""
    settings = PackedSettings(**{"method": method, "bits": 4, "group_size": 32, **changes})
    random = np.random.default_rng(0)
    size = IN if settings.group_size is None else settings.group_size
    groups = -(-IN // size)
    q = random.integers(0, 1 << settings.bits, (OUT, IN))
    zero = random.integers(0, 16, (OUT, groups))
    if settings.is_symmetric:
        zero[:] = 1 << settings.bits - 1
    if method == "awq":
        words, zeros = pack_awq(q, zero)
    else:
        words, zeros = pack_gptq(q, zero, settings.bits, offset=settings.zero_offset)
    scales = torch.from_numpy(random.normal(size=(groups, OUT)) / 50).half()
    tensors = {"x.qweight": words, "x.qzeros": zeros, "x.scales": scales}
    if method == "gptq":
        tensors["x.g_idx"] = torch.arange(IN, dtype=torch.int32) // size
    return settings, tensors


def load(settings: PackedSettings, tensors: dict[str, torch.Tensor], folder: Path):
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return PackedLinears(safetensors_table(path, [path]), settings).load("x.")


def require_plain(weight, settings: PackedSettings, tensors: dict[str, torch.Tensor]) -> None:
    size = -1 if settings.group_size is None else settings.group_size
    if settings.method == "awq":
        expected = plain_awq(tensors, "x.", size)
    else:
        expected = plain_gptq(tensors, "x.", settings.bits, size, offset=settings.zero_offset)
    # 4 or 8 bits times the 11 of a float16 need no rounding in float32.
    assert np.array_equal(weight.dequantize().double().numpy(), expected)


@pytest.mark.parametrize(
    ("method", "changes", "name"),
    [
        ("gptq", {"zero_offset": 1}, "int4-g32-asym"),
        ("gptq", {"zero_offset": 0}, "int4-g32-asym"),
        ("gptq", {"zero_offset": 1, "is_symmetric": True}, "int4-g32"),
        ("gptq", {"zero_offset": 1, "is_symmetric": True, "bits": 8}, "int8-g32"),
        ("gptq", {"group_size": 64, "zero_offset": 1}, "int4-g64-asym"),
        ("gptq", {"group_size": 128, "zero_offset": 1}, "int4-g128-asym"),
        ("gptq", {"group_size": None, "zero_offset": 1}, "int4-g128-asym"),
        ("gptq", {"group_size": 96, "is_symmetric": True}, "int4-g32"),
        ("awq", {}, "int4-g32-asym"),
        ("awq", {"group_size": 64}, "int4-g64-asym"),
        ("awq", {"group_size": None}, "int4-g128-asym"),
    ],
)
def test_a_linear_has_the_values_of_the_formula(tmp_path, method, changes, name):
    settings, tensors = linear(method, **changes)
    weight = load(settings, tensors, tmp_path)
    assert weight.format.name == name
    assert weight.scale.dtype == torch.float16
    assert (weight.row_scale == 1).all()
    require_plain(weight, settings, tensors)


def test_groups_wider_than_ours_repeat_their_scale(tmp_path):
    settings, tensors = linear("gptq", group_size=96, is_symmetric=True)
    weight = load(settings, tensors, tmp_path)
    assert weight.scale.shape == (OUT, 3)
    assert torch.equal(weight.scale, tensors["x.scales"].T.expand(-1, 3))


def test_a_group_far_wider_than_the_row_is_the_whole_row(tmp_path):
    whole, tensors = linear("gptq", group_size=None, zero_offset=1)
    expected = load(whole, tensors, tmp_path).dequantize()
    for group_size in (256, 1 << 62):
        wide = replace(whole, group_size=group_size)
        assert torch.equal(load(wide, tensors, tmp_path).dequantize(), expected)


def test_g_idx_may_be_absent_or_left_at_zero_where_nothing_was_reordered(tmp_path):
    settings, tensors = linear("gptq", zero_offset=1)
    whole = load(settings, tensors, tmp_path)
    tensors["x.g_idx"] = torch.zeros(IN, dtype=torch.int32)
    assert torch.equal(load(settings, tensors, tmp_path).data, whole.data)
    del tensors["x.g_idx"]
    assert torch.equal(load(settings, tensors, tmp_path).data, whole.data)


def test_reordering_that_left_the_groups_in_order_is_held(tmp_path):
    settings, tensors = linear("gptq", is_reordered=True)
    require_plain(load(settings, tensors, tmp_path), settings, tensors)


def test_symmetric_zeros_of_the_second_format_are_known_under_the_name_of_the_first(tmp_path):
    second, tensors = linear("gptq", is_symmetric=True)
    first = replace(second, zero_offset=1)
    assert torch.equal(
        load(first, tensors, tmp_path).dequantize(), load(second, tensors, tmp_path).dequantize()
    )


def test_scales_of_other_float_types_are_taken_where_float16_holds_them(tmp_path):
    settings, tensors = linear("awq")
    exact = load(settings, tensors, tmp_path)
    assert torch.equal(
        load(settings, {**tensors, "x.scales": tensors["x.scales"].float()}, tmp_path).scale,
        exact.scale,
    )
    third = torch.full_like(tensors["x.scales"], 1, dtype=torch.float32) / 3
    with pytest.raises(ModelFileError, match=r"x\.scales.*not a float16"):
        load(settings, {**tensors, "x.scales": third}, tmp_path)


@pytest.mark.parametrize(
    ("method", "name", "change", "message"),
    [
        ("gptq", "g_idx", lambda t: t.flip(0), r"desc_act.*no neighbours.*martlet quantize"),
        ("gptq", "g_idx", lambda t: t + 1, r"names groups 1 to 3, there are 0 to 2"),
        ("gptq", "g_idx", lambda t: -t, r"names groups -2 to 0, there are 0 to 2"),
        ("gptq", "g_idx", lambda t: t[:-8], r"g_idx has shape \[88\], expected \[96\]"),
        ("gptq", "g_idx", lambda t: t.long(), r"g_idx is torch.int64, expected int32"),
        ("gptq", "qweight", lambda t: t.float(), r"qweight is torch.float32, expected int32"),
        ("gptq", "qweight", lambda t: t[:-4], r"scales has shape \[3, 24\], expected \[2, 24\]"),
        ("gptq", "qweight", lambda t: t[0], r"qweight has shape \[24\], expected 2 axes"),
        ("gptq", "qzeros", lambda t: t[:, :2], r"qzeros has shape \[3, 2\], expected \[3, 3\]"),
        ("gptq", "qzeros", lambda t: t * 0, r"zeros from 1 to 1, but sym is true"),
        ("gptq", "scales", lambda t: t * float("nan"), r"scales.*not finite"),
        ("gptq", "scales", lambda t: t.int(), r"scales is torch.int32, expected a float"),
        ("awq", "qweight", lambda t: t[:-1], r"qweight has 95 rows, an odd number"),
        ("awq", "scales", lambda t: t[:1], r"scales has shape \[1, 24\], expected \[3, 24\]"),
    ],
)
def test_what_does_not_fit_together_is_named(tmp_path, method, name, change, message):
    settings, tensors = linear(method, is_symmetric=method == "gptq", zero_offset=1)
    tensors["x." + name] = change(tensors["x." + name]).contiguous()
    with pytest.raises(ModelFileError, match=message):
        load(settings, tensors, tmp_path)


@pytest.mark.parametrize("name", ["qweight", "qzeros", "scales"])
def test_a_part_that_is_missing_is_named(tmp_path, name):
    settings, tensors = linear("awq")
    del tensors["x." + name]
    with pytest.raises(ModelFileError, match=rf"has no tensor x\.{name}"):
        load(settings, tensors, tmp_path)


def test_a_reordered_linear_must_have_its_g_idx(tmp_path):
    settings, tensors = linear("gptq", is_reordered=True)
    del tensors["x.g_idx"]
    with pytest.raises(ModelFileError, match=r"no x\.g_idx, although desc_act is true"):
        load(settings, tensors, tmp_path)
