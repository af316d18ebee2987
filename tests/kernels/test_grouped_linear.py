"""Products with weights in groups on a processor, by native code and without it."""

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from martlet.compression.groups import quantize_groups
from martlet.kernels import ops, reference
from martlet.kernels.cpu import grouped_linear as subject
from martlet.kernels.cpu import native
from martlet.quantization.formats import WeightFormat, parse_format
from martlet.quantization.scheme import GroupedTensor

needs_compiler = pytest.mark.skipif(native.find_compiler() is None, reason="no C compiler")

FORMATS = ("int4-g32", "int4-g64", "int4-g128", "int4-g32-asym", "int4-g128-asym")
FORMATS += ("int8-g32", "int8-g64", "int8-g128")
FLOATS = {torch.float32: 0.0, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
# Largest error over the product of the magnitudes, which both the definition and the bodies are
# near to: 2**-16 for integers of 15 bits and a sign, and what sums in float32 lose.
INTEGER_ERROR = 4e-5


def _named(name: str) -> WeightFormat:
    format = parse_format(name)
    assert format is not None
    return format


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _weight(shape: tuple[int, int], name: str) -> GroupedTensor:
    """Every integer, scales of both signs, zeros inside and outside of the range."""
    format = _named(name)
    assert format.group_size is not None
    rows, columns = shape
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    num_groups = -(-columns // format.group_size)
    if format.bits == 4:
        data = torch.randint(0, 256, (rows, -(-columns // 2)), generator=generator)
        data = data.to(torch.uint8)
    else:
        data = torch.randint(-128, 128, shape, generator=generator).to(torch.int8)
    scale = torch.randn(rows, num_groups, generator=generator).to(torch.float16)
    zero = torch.rand(rows, num_groups, generator=generator).mul(20).sub(2).to(torch.float16)
    row_scale = torch.full((rows,), 0.25)
    zeros = zero if format.has_zeros else None
    return GroupedTensor(data, scale, row_scale, torch.Size(shape), format, zeros)


def _assert_near(ours: Tensor, x: Tensor, weight: GroupedTensor, tolerance: float) -> None:
    dense = weight.dequantize().double()
    magnitude = x.double().abs() @ _magnitudes(weight).t()
    error = (ours.double() - x.double() @ dense.t()).abs()
    assert (error <= tolerance * magnitude).all(), (error / magnitude).max()


def _magnitudes(weight: GroupedTensor) -> Tensor:
    """Of integers and zeros apart, as they are summed apart."""
    assert weight.format.group_size is not None
    integers = weight.integers().double().abs()
    zeros = torch.zeros_like(weight.scale) if weight.zero is None else weight.zero
    if weight.format.bits == 4 and weight.zero is None:
        zeros = zeros + 8
    size = weight.format.group_size
    spread = [
        t.double().abs().repeat_interleave(size, 1)[:, : weight.shape[1]]
        for t in (zeros, weight.scale)
    ]
    return (integers + spread[0]) * spread[1] * weight.row_scale.double()[:, None]


@pytest.fixture(params=["vectors", "plain C", "tiles"])
def body(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each body that may compute a product here."""
    kernel, reason = subject.find_kernel()
    if request.param == "plain C":
        kernel = request.getfixturevalue("plain_kernel")
    elif request.param == "tiles":
        kernel, reason = None, "not wanted"
    elif kernel is None:
        pytest.skip(reason)
    monkeypatch.setattr(subject, "find_kernel", lambda: (kernel, reason))
    yield request.param


@pytest.fixture(scope="module")
def plain_kernel(tmp_path_factory: pytest.TempPathFactory) -> subject.Kernel:
    """The kernel as processors get it that the source has no vectors for."""
    compiler = native.find_compiler()
    if compiler is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("plain") / "plain.so"
    source = Path(native.__file__).with_name("grouped_linear.c")
    flags = [flag for flag in native._FLAGS if flag != "-march=native"]
    subprocess.run([compiler, *flags, str(source), "-o", str(path)], check=True)
    kernel = subject.native_kernel(ctypes.CDLL(str(path)))
    assert subject.passes_self_test(kernel)
    return kernel


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_products_are_those_of_the_definition(body: str, name: str, dtype: torch.dtype) -> None:
    for shape in ((1, 1), (5, 7), (9, 31), (8, 32), (3, 33), (17, 100), (6, 257), (33, 1216)):
        weight = _weight(shape, name)
        for num_rows in (1, 2, 3, 4, 7, 17):
            x = _randn(num_rows, shape[1]).to(dtype)
            ours = ops.linear(x, weight)
            assert ours.dtype == dtype
            _assert_near(ours, x, weight, INTEGER_ERROR + FLOATS[dtype])


@pytest.mark.parametrize("name", FORMATS)
def test_many_rows_are_those_of_the_definition(name: str) -> None:
    weight, x = _weight((40, 160), name), _randn(subject.MAX_ROWS_NATIVE + 1, 160)
    _assert_near(ops.linear(x, weight), x, weight, INTEGER_ERROR)


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantised_matrix_multiplies_as_the_reference_does(name: str) -> None:
    weight = quantize_groups(_randn(48, 192), _named(name))
    x, bias = _randn(3, 192, seed=1), _randn(48)
    ours, definition = ops.linear(x, weight, bias), reference.linear(x, weight, bias)
    assert float((ours - definition).abs().max() / definition.abs().max()) < 1e-4


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_does_not_depend_on_those_beside_it(body: str, name: str) -> None:
    weight, x = _weight((70, 1216), name), _randn(subject.MAX_ROWS_ALONE, 1216)
    alone = torch.cat([ops.linear(row[None], weight) for row in x])
    for num_rows in (2, 3, 4, 5, 8, 11, 16):
        assert torch.equal(ops.linear(x[:num_rows], weight), alone[:num_rows])


@pytest.mark.parametrize("name", FORMATS)
def test_threads_do_not_change_a_bit(body: str, name: str) -> None:
    weight, x = _weight((203, 320), name), _randn(5, 320)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.linear(x, weight)
        for num_threads in (2, 3):
            torch.set_num_threads(num_threads)
            assert torch.equal(ops.linear(x, weight), one)
    finally:
        torch.set_num_threads(before)


def test_an_outlier_costs_its_own_block_only(body: str) -> None:
    # A channel a thousand times the others, as trained models have: beyond the 32 inputs around it
    # nothing is lost, and inside 2**-16 of it.
    weight = _weight((24, 256), "int4-g32")
    x = _randn(2, 256)
    calm = ops.linear(x, weight)
    x[:, 70] *= 1000
    ours = ops.linear(x, weight)
    _assert_near(ours, x, weight, INTEGER_ERROR)
    dense = weight.dequantize()
    without = ours - x[:, 70:71] * dense[:, 70] + (x[:, 70:71] / 1000) * dense[:, 70]
    step = x[:, 70:71].abs() / 32767
    limit = step * dense[:, 64:96].abs().sum(1) + 1e-4 * calm.abs().max() + 1e-6 * ours.abs()
    assert ((without - calm).abs() <= limit).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_what_is_not_finite_stays_so_in_its_row_alone(body: str, value: float) -> None:
    weight, x = _weight((12, 96), "int4-g32"), _randn(3, 96)
    x[1, 40] = value
    ours = ops.linear(x, weight)
    assert not ours[1].isfinite().any()
    assert ours[0].isfinite().all()
    assert ours[2].isfinite().all()


def test_zeros_and_the_smallest_numbers_give_no_nonsense(body: str) -> None:
    weight = _weight((6, 64), "int4-g32-asym")
    assert torch.equal(ops.linear(torch.zeros(2, 64), weight), torch.zeros(2, 6))
    assert float(ops.linear(torch.full((1, 64), 1e-42), weight).abs().max()) < 1e-37


@needs_compiler
@pytest.mark.parametrize("name", ["int4-g32", "int4-g64-asym", "int8-g128"])
@pytest.mark.parametrize("in_features", [1, 31, 32, 63, 64, 65, 127, 130, 300])
def test_nothing_behind_a_weight_is_read_or_counts(name: str, in_features: int) -> None:
    weight = _weight((5, in_features), name)
    x = _randn(2, in_features)
    definition = ops.linear(x, weight)

    def surrounded(tensor: Tensor) -> Tensor:
        memory = torch.full((tensor.numel() + 512,), 119, dtype=torch.uint8).to(tensor.dtype)
        memory[1 : 1 + tensor.numel()] = tensor.reshape(-1)
        return memory[1 : 1 + tensor.numel()].view(tensor.shape)

    zero = None if weight.zero is None else surrounded(weight.zero)
    parts = surrounded(weight.data), surrounded(weight.scale), surrounded(weight.row_scale)
    moved = GroupedTensor(*parts, weight.shape, weight.format, zero)
    assert torch.equal(ops.linear(surrounded(x), moved), definition)


def test_a_part_of_a_matrix_and_rows_in_strides_are_read_right(body: str) -> None:
    weight, x = _weight((40, 128), "int4-g32"), _randn(4, 256)
    part = weight.rows(7, 30)
    _assert_near(ops.linear(x[:, ::2], part), x[:, ::2], part, INTEGER_ERROR)
    held = torch.zeros(40, 8, dtype=torch.float16)
    held[:, ::2] = weight.scale
    strided = GroupedTensor(
        weight.data, held[:, ::2], weight.row_scale, weight.shape, weight.format
    )
    assert torch.equal(strided.dequantize(), weight.dequantize())
    _assert_near(ops.linear(x[:, ::2], strided), x[:, ::2], strided, INTEGER_ERROR)


def test_no_rows_and_several_axes_keep_their_shape(body: str) -> None:
    weight = _weight((10, 64), "int4-g32")
    assert ops.linear(torch.empty(0, 64), weight).shape == (0, 10)
    x = _randn(2, 3, 64)
    assert torch.equal(ops.linear(x, weight).view(6, 10), ops.linear(x.view(6, 64), weight))


def test_a_gradient_is_not_lost_silently(body: str) -> None:
    weight = _weight((10, 64), "int4-g32")
    with pytest.raises(RuntimeError, match="grad"):
        ops.linear(torch.ones(1, 64, requires_grad=True), weight)


@pytest.fixture
def fresh_search() -> Iterator[None]:
    subject.find_kernel.cache_clear()
    yield
    subject.find_kernel.cache_clear()


@needs_compiler
def test_here_the_kernel_is_native(fresh_search: None) -> None:
    assert subject.describe_kernel().startswith("native, compiled by /")


def test_without_a_compiler_tiles_compute_and_say_so(
    fresh_search: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    weight, x = _weight((10, 64), "int4-g32"), _randn(2, 64)
    _assert_near(ops.linear(x, weight), x, weight, 1e-6)
    assert subject.describe_kernel().startswith("float tiles, slow: no C compiler")


def test_the_switch_keeps_native_code_out(
    fresh_search: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(subject.SWITCH, "0")
    assert subject.describe_kernel() == "float tiles, slow: switched off by MARTLET_NATIVE=0"


def _forgetting_zeros(x: Tensor, weight: GroupedTensor) -> Tensor:
    if weight.zero is None:
        return x @ weight.dequantize().t()
    return x @ (weight.dequantize() + 0.01).t()


def _depending_on_rows_beside(x: Tensor, weight: GroupedTensor) -> Tensor:
    return x @ weight.dequantize().t() * (1 + 1e-6 * x.shape[0])


@pytest.mark.parametrize("kernel", [_forgetting_zeros, _depending_on_rows_beside])
def test_wrong_products_fail_the_self_test(kernel: subject.Kernel) -> None:
    assert not subject.passes_self_test(kernel)


@needs_compiler
def test_a_library_whose_products_are_wrong_is_not_used(
    fresh_search: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "native_kernel", lambda _: _forgetting_zeros)
    weight, x = _weight((10, 64), "int4-g32-asym"), _randn(2, 64)
    _assert_near(ops.linear(x, weight), x, weight, 1e-6)
    assert "its products are wrong" in subject.describe_kernel()
