import pytest
import torch

from martlet.compression.absmax import quantize_rows
from martlet.compression.gptq import OutputError, gptq
from martlet.compression.groups import quantize_groups
from martlet.errors import ModelFileError
from martlet.quantization.formats import INT4, INT8, parse_format

NAMES = ["int4-g32", "int4-g64-asym", "int4-g128", "int8-g32"]


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _correlated_inputs(num_inputs, in_features, seed=1):
    """Inputs that live mostly in a fifth of their directions, as hidden states do."""
    few = max(1, in_features // 5)
    main = _random(num_inputs, few, seed=seed) @ _random(few, in_features, seed=seed + 1)
    return main + 0.1 * _random(num_inputs, in_features, seed=seed + 2)


def _hessian(inputs):
    return inputs.t() @ inputs / len(inputs)


def _cost(weight, quantized, hessian):
    difference = quantized.dequantize() - weight
    return float((difference @ hessian * difference).sum())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rows", "columns"), [(24, 160), (7, 77), (1, 300), (16, 5)])
def test_correlated_inputs_make_it_far_better_than_nearest(name, rows, columns):
    format = parse_format(name)
    weight = _random(rows, columns)
    hessian = _hessian(_correlated_inputs(600, columns))
    quantized = gptq(weight, OutputError(hessian), format, candidates=4)
    plain = quantize_groups(weight, format, candidates=4, importance=hessian.diagonal())
    assert quantized.format == format
    assert quantized.shape == weight.shape
    ratio = _cost(weight, quantized, hessian) / _cost(weight, plain, hessian)
    assert ratio < (0.6 if columns > 5 else 1.001)


def test_int8_rows_get_better_as_well():
    weight = _random(24, 160)
    hessian = _hessian(_correlated_inputs(600, 160))
    quantized = gptq(weight, OutputError(hessian), INT8)
    plain = quantize_rows(weight)
    assert torch.equal(quantized.scale, plain.scale)
    assert _cost(weight, quantized, hessian) < 0.6 * _cost(weight, plain, hessian)


@pytest.mark.parametrize("name", [*NAMES, "int8"])
def test_inputs_without_correlation_leave_every_weight_at_its_nearest(name):
    format = parse_format(name)
    weight = _random(9, 100)
    hessian = torch.diag(_random(100, seed=5).square())
    error = OutputError(hessian)
    quantized = gptq(weight, error, format, candidates=3)
    if format == INT8:
        assert torch.equal(quantized.data, quantize_rows(weight).data)
        return
    plain = quantize_groups(weight, format, candidates=3, importance=error.importance)
    assert torch.equal(quantized.data, plain.data)
    assert torch.equal(quantized.scale, plain.scale)


def test_it_is_never_worse_than_nearest_under_the_same_scales():
    for seed in range(8):
        weight = _random(16, 64, seed=seed)
        # Fewer inputs than features, and damping that drowns what they say.
        hessian = _hessian(_correlated_inputs(8, 64, seed=seed))
        error = OutputError(hessian, damping=3.0)
        plain = quantize_groups(weight, INT4, importance=error.importance)
        rows = [q.dequantize() - weight for q in (gptq(weight, error, INT4), plain)]
        assert (error.of(rows[0]) <= error.of(rows[1])).all()


def test_large_inputs_should_come_first():
    weight = _random(64, 128)
    inputs = _correlated_inputs(600, 128)
    inputs[:, -6:] *= 30  # they would come last, with nothing left to make up for them
    hessian = _hessian(inputs)
    ordered = gptq(weight, OutputError(hessian), INT4)
    plain = gptq(weight, OutputError(hessian, activation_order=False), INT4)
    assert _cost(weight, ordered, hessian) < 0.8 * _cost(weight, plain, hessian)


def test_inputs_that_never_came_do_no_harm():
    weight = _random(8, 64)
    inputs = _correlated_inputs(300, 64)
    inputs[:, [3, 40]] = 0
    quantized = gptq(weight, OutputError(_hessian(inputs)), INT4)
    others = quantize_groups(weight, INT4)
    # They stay near what they were, for texts in which they do come.
    difference = (quantized.dequantize() - weight)[:, [3, 40]].abs()
    assert difference.max() < 3 * (others.dequantize() - weight).abs().max()
    silent = gptq(weight, OutputError(torch.zeros(64, 64)), INT4)
    assert torch.equal(silent.data, others.data)


def test_a_hessian_without_full_rank_is_damped_until_it_can_be_inverted():
    one = _random(1, 96).expand(5, 96)  # rank 1
    error = OutputError(_hessian(one), damping=1e-12)
    assert torch.isfinite(error.upper).all()
    weight = _random(4, 96)
    assert torch.isfinite(gptq(weight, error, INT4).dequantize()).all()


def test_the_factor_inverts_the_damped_hessian_in_its_order():
    hessian = _hessian(_correlated_inputs(200, 40))
    error = OutputError(hessian)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(40)
    ordered = damped[error.order][:, error.order]
    assert torch.allclose(error.upper.t() @ error.upper @ ordered, torch.eye(40), atol=2e-3)
    assert torch.equal(error.upper, error.upper.triu())


def test_rows_in_pieces_are_rounded_as_they_would_be_together(monkeypatch):
    weight = _random(20, 96)
    error = OutputError(_hessian(_correlated_inputs(300, 96)))
    together = gptq(weight, error, INT4)
    monkeypatch.setattr("martlet.compression.gptq._ROWS_ELEMENTS", 96 * 7)
    in_pieces = gptq(weight, error, INT4)
    changed = (together.integers() != in_pieces.integers()).float().mean()
    assert changed < 0.01  # sums in another order may tip a tie


def test_inputs_that_are_no_numbers_are_refused():
    hessian = torch.eye(32)
    hessian[3, 4] = torch.nan
    with pytest.raises(ModelFileError, match="calibration inputs"):
        OutputError(hessian)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*NAMES, "int8"])
def test_a_gpu_makes_up_for_errors_as_well_as_a_processor(name):
    format = parse_format(name)
    weight, hessian = _random(70, 300), _hessian(_correlated_inputs(900, 300))
    here = gptq(weight, OutputError(hessian), format, candidates=4)
    there = gptq(weight.cuda(), OutputError(hessian.cuda()), format, candidates=4).to("cpu")
    costs = [_cost(weight, quantized, hessian) for quantized in (here, there)]
    assert costs[1] == pytest.approx(costs[0], rel=0.05)
