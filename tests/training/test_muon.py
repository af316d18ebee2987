import pytest
import torch

from muon import StackedMuon, orthogonalize


def matrices(*shapes: tuple[int, int], seed: int = 0) -> list[torch.nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    out = [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]
    for p in out:
        p.grad = torch.randn(p.shape, generator=random) * 1e-3
    return out


@pytest.mark.parametrize("shape", [(48, 48), (32, 96), (96, 32)])
def test_all_directions_of_a_gradient_come_out_about_equally_strong(shape: tuple[int, int]) -> None:
    gradient = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    strengths = torch.linalg.svdvals(orthogonalize(gradient)[0].float())
    # The five steps with these coefficients aim at 0.7 to 1.2; square Gaussian matrices have a
    # few directions that are almost zero, which five steps do not lift all the way.
    assert strengths.max() < 1.3
    assert strengths.quantile(0.1) > 0.6


@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (96, 32)])
def test_one_step_moves_a_matrix_by_a_fifth_of_the_rate(shape: tuple[int, int]) -> None:
    (p,) = matrices(shape)
    before = p.detach().clone()
    StackedMuon([p], lr=0.01, weight_decay=0.0).step()
    moved = (p.detach() - before).square().mean().sqrt().item()
    # An orthogonal matrix has an RMS of 1 / sqrt(longer side), and the step is scaled by 0.2
    # times that side's root; singular values between 0.7 and 1.2 leave about a fifth of doubt.
    assert moved == pytest.approx(0.2 * 0.01, rel=0.2)


def test_the_size_of_the_gradient_does_not_matter() -> None:
    (small,), (large,) = matrices((24, 40)), matrices((24, 40))
    assert large.grad is not None
    large.grad.mul_(1024)  # a power of two, so that nothing rounds differently
    for p in (small, large):
        StackedMuon([p], lr=0.01).step()
    # The guard of 1e-7 stands beside a norm of about 0.03; the products round to bfloat16.
    assert torch.allclose(small, large, atol=0.01 * 0.2 * 2**-6, rtol=0)


def test_weight_decay_shrinks_the_matrix_whatever_the_gradient() -> None:
    (kept,), (decayed,) = matrices((24, 40)), matrices((24, 40))
    before = kept.detach().clone()
    StackedMuon([kept], lr=0.01, weight_decay=0.0).step()
    StackedMuon([decayed], lr=0.01, weight_decay=0.5).step()
    # Decoupled: the difference is lr * weight_decay * matrix and nothing else (float32 rounding).
    assert torch.allclose(kept - decayed, 0.01 * 0.5 * before, atol=1e-6)


def test_matrices_updated_together_go_where_each_would_go_alone() -> None:
    shapes = [(16, 24), (24, 16), (16, 24), (16, 24)]
    together, alone = matrices(*shapes), matrices(*shapes)
    optimizers = [StackedMuon(together, lr=0.01), *(StackedMuon([p], lr=0.01) for p in alone)]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(together, alone, strict=True):
        # bfloat16 products in another order: 2**-8 of an update of 0.002, three times.
        assert torch.allclose(a, b, atol=3 * 0.002 * 2**-5, rtol=0)


def test_momentum_carries_a_direction_on() -> None:
    (p,) = matrices((32, 32))
    optimizer = StackedMuon([p], lr=0.01, weight_decay=0.0)
    for _ in range(20):
        optimizer.step()
    assert p.grad is not None
    direction = p.grad.clone()
    p.grad = torch.zeros_like(p)
    before = p.detach().clone()
    optimizer.step()
    assert ((p.detach() - before) * direction).sum() < 0  # still downhill
