import pytest
import torch

from martlet.compression.nearest import quantize_matrix
from martlet.engine.uploads import Uploads
from martlet.quantization.formats import INT4, INT8, WeightFormat

FORMATS = [None, INT8, INT4, WeightFormat(4, 64, has_zeros=True)]


def weights_of(format, count):
    random = torch.Generator().manual_seed(2)
    for number in range(count):
        weight = torch.randn(64 + number, 320, generator=random)
        yield weight.bfloat16() if format is None else quantize_matrix(weight, format)


def floats(weight):
    return weight.float() if isinstance(weight, torch.Tensor) else weight.dequantize()


def test_on_a_processor_nothing_moves():
    pieces = list(weights_of(None, 3))
    arrived = list(Uploads(torch.device("cpu")).pieces(pieces))
    assert all(one is other for one, other in zip(arrived, pieces, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name if f else "float")
def test_pieces_arrive_in_order_while_the_card_computes(format):
    device = torch.device("cuda", torch.cuda.current_device())
    uploads = Uploads(device)
    busy = torch.randn(2048, 2048, device=device)
    sums, expected = [], []
    for piece, original in zip(
        uploads.pieces(weights_of(format, 40)), weights_of(format, 40), strict=True
    ):
        busy = busy @ busy / 50  # what comes next is read long after it was launched
        assert piece.device == device
        sums.append(floats(piece).sum(dim=1))
        del piece  # its memory is for the next ones
        expected.append(floats(original).sum(dim=1))
    for ours, theirs in zip(sums, expected, strict=True):
        assert torch.allclose(ours.cpu(), theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.gpu
def test_pieces_that_nobody_takes_leave_the_next_ones_sound():
    device = torch.device("cuda", torch.cuda.current_device())
    uploads = Uploads(device)
    given_up = uploads.pieces(torch.full((1 << 20,), 7.0) for _ in range(9))
    assert float(next(given_up)[0]) == 7
    given_up.close()
    (piece,) = uploads.pieces([torch.arange(1 << 20, dtype=torch.float32).view(2, -1).T])
    assert torch.equal(piece.cpu(), torch.arange(1 << 20, dtype=torch.float32).view(2, -1).T)
