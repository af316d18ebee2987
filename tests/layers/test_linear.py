import pytest
import torch

from martlet.kernels import ops
from martlet.layers.linear import gated_linear, linear, linears, vector
from martlet.quantization.scheme import QuantizedTensor

ONES = ops.Norm(torch.ones(2), None, 0.0)
WEIGHTS = {
    "a.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, -9.0]]),
    "a.bias": torch.tensor([10.0, 20.0, 30.0]),
    "b.weight": torch.tensor([[1.0, 1.0], [1.0, -1.0], [2.0, 0.0]]),
}
X = torch.tensor([[2.0, 2.0]])  # the root mean square norm makes ones of it


def test_a_bias_is_added_where_the_block_has_one() -> None:
    assert linear(WEIGHTS, "a", X).tolist() == [[16.0, 34.0, 12.0]]
    assert linear(WEIGHTS, "b", X).tolist() == [[4.0, 0.0, 4.0]]


def test_norm_activation_and_residual_come_in_that_order() -> None:
    residual = torch.tensor([[-100.0, -200.0, -300.0]])
    weights = {**WEIGHTS, "a.bias": torch.tensor([0.0, 0.0, 1.0])}
    ours = linear(weights, "a", X, norm=ONES, activation="relu", residual=residual)
    assert ours.tolist() == [[3.0 - 100.0, 7.0 - 200.0, 0.0 - 300.0]]


def test_several_layers_get_one_normed_input_and_each_its_own_bias() -> None:
    a, b = linears(WEIGHTS, ["a", "b"], X, norm=ONES)
    assert a.tolist() == [[13.0, 27.0, 21.0]]
    assert b.tolist() == [[2.0, 0.0, 2.0]]


def test_the_activation_is_that_of_the_gate() -> None:
    weights = {"gate.weight": -WEIGHTS["b.weight"], "up.weight": -WEIGHTS["a.weight"]}
    gated = gated_linear(weights, "gate", "up", torch.tensor([[1.0, -3.0]]), "relu")
    assert gated.tolist() == [[2.0 * 5.0, 0.0, 0.0]]
    normed = gated_linear(weights, "up", "gate", X, "relu", norm=ONES)
    assert normed.tolist() == [[0.0, 0.0, 9.0 * -2.0]]


def test_a_gate_may_have_biases() -> None:
    gate, up = linear(WEIGHTS, "b", X, activation="relu"), linear(WEIGHTS, "a", X)
    assert torch.equal(gated_linear(WEIGHTS, "b", "a", X, "relu"), gate * up)


def test_a_quantised_norm_is_our_own_mistake() -> None:
    int8 = QuantizedTensor(torch.zeros(2, 2, dtype=torch.int8), torch.ones(2))
    with pytest.raises(AssertionError, match="must not be quantised"):
        vector({"n.weight": int8}, "n.weight")
