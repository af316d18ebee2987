import torch

from martlet.kernels import ops
from martlet.layers.norm import layer_norm, rms_norm

WEIGHTS = {"n.weight": torch.tensor([2.0, 3.0]), "n.bias": torch.tensor([10.0, 20.0])}
X = torch.tensor([[1.0, 7.0]])


def test_a_layer_norm_takes_weight_and_bias_of_its_name() -> None:
    # Mean 4, standard deviation 3.
    assert ops.norm(X, layer_norm(WEIGHTS, "n", 0.0)).tolist() == [[8.0, 23.0]]


def test_a_root_mean_square_norm_leaves_the_mean_and_a_bias_alone() -> None:
    ours = ops.norm(X, rms_norm(WEIGHTS, "n", 0.0))
    # The mean of the squares is 25; its inverse root is rounded in float32.
    torch.testing.assert_close(ours, torch.tensor([[0.4, 4.2]]), rtol=1e-6, atol=0)


def test_epsilon_is_added_to_the_mean_square() -> None:
    ours = ops.norm(X, rms_norm(WEIGHTS, "n", 75.0))
    torch.testing.assert_close(ours, torch.tensor([[0.2, 2.1]]), rtol=1e-6, atol=0)
