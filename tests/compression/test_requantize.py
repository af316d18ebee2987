import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from martlet.compression import requantize
from martlet.compression.nearest import quantize_matrix
from martlet.compression.requantize import in_format, in_formats
from martlet.errors import ModelFileError
from martlet.models.architecture import TensorSpec
from martlet.quantization.formats import INT4, INT8, parse_format
from martlet.quantization.scheme import QuantizedTensor

CPU = torch.device("cpu")
FORMATS = [INT8, INT4, parse_format("int4-g64-asym"), parse_format("int8-g32")]
FORMS = [*FORMATS, None]


def matrix(rows=40, columns=70, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def stored(weight, format):
    return weight if format is None else quantize_matrix(weight, format)


def floats(weight):
    return weight if isinstance(weight, torch.Tensor) else weight.dequantize()


def assert_same(weight, wanted):
    assert type(weight) is type(wanted)
    if not isinstance(weight, torch.Tensor):
        assert weight.format == wanted.format
        assert weight.shape == wanted.shape
        assert torch.equal(weight.data, wanted.data)
    assert torch.equal(floats(weight), floats(wanted))


@pytest.mark.parametrize("format", FORMS, ids=str)
def test_a_weight_that_has_the_format_is_handed_back(format):
    weight = stored(matrix(), format)
    assert in_format(weight, format, "w", CPU) is weight


@pytest.mark.parametrize("wanted", FORMS, ids=str)
@pytest.mark.parametrize("format", FORMS, ids=str)
def test_a_weight_becomes_what_its_floats_become(format, wanted):
    weight = stored(matrix(), format)
    assert_same(in_format(weight, wanted, "w", CPU), stored(floats(weight), wanted))


@given(
    st.sampled_from(FORMATS),
    st.sampled_from(FORMS),
    st.integers(1, 40),
    st.integers(1, 140),
    st.integers(1, 500),
)
def test_the_result_does_not_depend_on_the_rows_that_are_computed_at_a_time(
    format, wanted, rows, columns, elements
):
    weight = stored(matrix(rows, columns), format)
    whole = in_format(weight, wanted, "w", CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requantize, "_PIECE_ELEMENTS", elements)
        assert_same(in_format(weight, wanted, "w", CPU), whole)


def test_every_weight_of_a_block_takes_its_own_format():
    weights = {"q.weight": matrix(), "wo.weight": matrix(seed=1), "norm.weight": torch.ones(3)}
    formats = {"q.weight": INT4, "wo.weight": INT8, "norm.weight": None}
    result = in_formats(weights, formats, CPU)
    assert result["norm.weight"] is weights["norm.weight"]
    for name in ("q.weight", "wo.weight"):
        assert_same(result[name], quantize_matrix(weights[name], formats[name]))


def test_a_weight_that_is_no_number_is_refused_by_name():
    weight = matrix()
    weight[3, 5] = torch.inf
    with pytest.raises(ModelFileError, match=r"h\.3\.q\.weight: row 3"):
        in_format(weight, INT4, "h.3.q.weight", CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("wanted", FORMS, ids=str)
@pytest.mark.parametrize("format", FORMS, ids=str)
def test_a_gpu_makes_about_the_weights_that_the_cpu_makes(format, wanted):
    weight = stored(matrix(100, 200), format)
    here = in_format(weight, wanted, "w", CPU)
    there = in_format(weight, wanted, "w", torch.device("cuda"))
    assert there.device == weight.device
    # Sums of squared errors in another order: a group may take the other of two ranges as good.
    error = (floats(there) - floats(here)).norm() / floats(here).norm()
    assert error < 0.02


def test_a_block_keeps_norms_and_what_is_int8_already():
    specs = (
        TensorSpec("q.weight", (2, 2), "linear"),
        TensorSpec("wte.weight", (2, 2), "embedding"),
        TensorSpec("k.weight", (2, 2), "linear"),
        TensorSpec("norm.weight", (2,), "other"),
        TensorSpec("wpe.weight", (2, 2), "other"),
    )
    ready = QuantizedTensor(torch.ones(2, 2, dtype=torch.int8), torch.ones(2).half())
    weights = {spec.name: torch.ones(spec.shape) for spec in specs} | {"k.weight": ready}
    formats = {spec.name: None if spec.kind == "other" else INT8 for spec in specs}
    result = in_formats(weights, formats, CPU)
    assert list(result) == [spec.name for spec in specs]
    assert isinstance(result["q.weight"], QuantizedTensor)
    assert isinstance(result["wte.weight"], QuantizedTensor)
    assert result["k.weight"] is ready
    assert result["norm.weight"] is weights["norm.weight"]
    assert result["wpe.weight"] is weights["wpe.weight"]
