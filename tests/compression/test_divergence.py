import errno
import math

import pytest
import torch

from martlet.compression import divergence
from martlet.compression.divergence import Reference
from martlet.errors import DiskFullError


def rows(count: int, vocab_size: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def compared(reference: torch.Tensor, other: torch.Tensor, steps=(7, 1, 100), **options):
    with Reference(reference.shape[0], **options) as kept:
        for piece in reference.split(5):
            kept.observe(piece)
        comparison = kept.comparison()
        done = 0
        for step in steps:
            comparison.observe(other[done : done + step])
            done += step
        return comparison.measured()


def test_the_divergence_is_that_of_the_exact_distributions():
    a, b = rows(90), rows(90) + rows(90, seed=1) * 0.1
    p, q = a.double().log_softmax(1), b.double().log_softmax(1)
    kl = float((p.exp() * (p - q)).sum(1).mean())
    found = compared(a, b)
    # Logarithms are kept with 11 bits: below 1e-3 of a divergence of 0.03.
    assert math.isclose(found.kl, kl, rel_tol=1e-3)
    assert found.top1_agreement == float((a.argmax(1) == b.argmax(1)).double().mean())
    assert found.num_tokens == 90


def test_a_model_is_as_good_as_no_distance_from_itself():
    found = compared(rows(90), rows(90))
    assert 0 <= found.kl < 1e-6
    assert found.top1_agreement == 1


def test_a_hand_worked_divergence():
    a = torch.tensor([[0.5, 0.5]]).log()
    b = torch.tensor([[0.25, 0.75]]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    found = compared(a, b)
    assert math.isclose(found.kl, expected, rel_tol=1e-3)  # float16 logarithms
    assert found.top1_agreement == 0


def test_tokens_that_can_never_come_count_as_nothing():
    a, b = rows(4), rows(4)
    a[:, :10] = b[:, :10] = -math.inf
    assert compared(a, b).kl < 1e-6
    b[:, 20] = -math.inf
    assert compared(a, b).kl == math.inf


def test_a_long_text_is_sampled_evenly_however_it_comes_in_pieces():
    a, b = rows(90), rows(90, seed=1)
    # A row is 80 bytes, so 2,400 bytes are 30 rows: every third.
    found = compared(a, b, max_file_bytes=2400)
    assert found.num_tokens == 30
    thinned = compared(a[::3], b[::3])
    assert math.isclose(found.kl, thinned.kl, rel_tol=1e-12)
    assert found.top1_agreement == thinned.top1_agreement


def test_other_vocabularies_and_other_numbers_of_tokens_have_no_distance():
    assert compared(rows(90), rows(90, vocab_size=41)) is None
    assert compared(rows(90), rows(89)) is None
    assert compared(rows(90), rows(91)) is None


def test_several_models_are_compared_one_after_the_other():
    a, b = rows(20), rows(20, seed=1)
    with Reference(20) as kept:
        kept.observe(a)
        found = []
        for other in (b, a, b):
            comparison = kept.comparison()
            comparison.observe(other)
            found.append(comparison.measured())
    assert found[0] == found[2] != found[1]


def test_a_full_disk_is_said_with_the_way_out(monkeypatch):
    class Full:
        def write(self, data: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(divergence.tempfile, "TemporaryFile", Full)
    with pytest.raises(DiskFullError, match=r"no room.*TMPDIR"), Reference(4) as kept:
        kept.observe(rows(4))
