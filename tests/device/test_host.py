import logging

import pytest
import torch

from martlet.device import host
from martlet.device.host import HostBuffer, StagingRing

PIECE_BYTES = 256
# Nothing, less than a piece, whole pieces, and more of them than the ring has.
SIZES = (0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES, 1000, 1024)
_LAG_CYCLES = 2_000_000  # about a millisecond


def bytes_of(num_bytes, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=random)


def locked_buffer(num_bytes, seed=0):
    buffer = HostBuffer(num_bytes)
    buffer.data.copy_(bytes_of(num_bytes, seed))
    assert buffer.lock()
    return buffer


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(host, "_RING_BYTES", PIECE_BYTES)


@pytest.fixture
def nothing_can_be_locked(monkeypatch):
    """What torch does where the system allows no page-locked memory, or there is no GPU."""
    empty = torch.empty

    def refuse(*size, pin_memory=False, **options):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", refuse)


def test_a_buffer_is_ordinary_memory_until_it_is_locked():
    buffer = HostBuffer(1000)
    assert (buffer.data.shape, buffer.data.dtype) == ((1000,), torch.uint8)
    assert buffer.data.device.type == "cpu"
    assert not buffer.is_locked


def test_an_empty_buffer_asks_the_system_for_nothing():
    buffer = HostBuffer(0)
    assert not buffer.lock()
    assert not buffer.is_locked


def test_without_page_locked_memory_the_ring_says_so_once_and_copies(
    nothing_can_be_locked, small_pieces, caplog
):
    with caplog.at_level(logging.WARNING):
        ring = StagingRing()
        for num_bytes in SIZES:
            source, target = bytes_of(num_bytes), torch.zeros(num_bytes, dtype=torch.uint8)
            ring.copy(source, target)
            assert torch.equal(target, source)
    (record,) = caplog.records
    assert "ulimit -l" in record.getMessage()


@pytest.mark.gpu
def test_a_locked_buffer_keeps_its_bytes_and_is_registered_until_it_goes():
    buffer = locked_buffer(1 << 20)
    data = buffer.data
    assert buffer.is_locked
    assert data.is_pinned()
    assert torch.equal(data, bytes_of(1 << 20))
    del buffer
    assert not data.is_pinned()


@pytest.mark.gpu
def test_locking_again_changes_nothing():
    buffer = locked_buffer(1 << 20)
    data = buffer.data
    assert buffer.lock()
    del buffer
    assert not data.is_pinned()  # registered once, so unregistered once is enough


@pytest.mark.gpu
def test_small_buffers_that_share_a_page_are_locked_too():
    buffers = [locked_buffer(300, seed=number) for number in range(8)]
    for number, buffer in enumerate(buffers):
        assert torch.equal(buffer.data.cuda(), bytes_of(300, seed=number).cuda())


@pytest.mark.gpu
def test_a_refusal_is_an_answer_and_no_error_that_comes_out_later():
    buffer, second = locked_buffer(1 << 20), HostBuffer(1)
    second.data = buffer.data  # memory is registered by one owner at a time
    assert not second.lock()
    assert not second.is_locked
    # A kernel of torch would find an error that was left behind.
    assert (torch.ones(8, device="cuda") * 2).sum().item() == 16
    assert buffer.data.is_pinned()


@pytest.mark.gpu
def test_copies_from_a_locked_buffer_are_right_and_do_not_wait():
    buffer = locked_buffer(1 << 20)
    target = torch.zeros(1 << 20, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(_LAG_CYCLES)
    target.copy_(buffer.data, non_blocking=True)
    assert not torch.cuda.current_stream().query()
    assert torch.equal(target.cpu(), buffer.data)


@pytest.mark.gpu
@pytest.mark.parametrize("num_bytes", SIZES)
def test_the_ring_copies_any_size(num_bytes, small_pieces):
    ring = StagingRing()
    source, target = bytes_of(num_bytes), torch.zeros(num_bytes, dtype=torch.uint8, device="cuda")
    ring.copy(source, target)
    assert torch.equal(target.cpu(), source)


@pytest.mark.gpu
def test_the_source_of_a_ring_copy_may_change_at_once_even_if_the_gpu_is_behind(small_pieces):
    ring = StagingRing()
    targets = [torch.zeros(1000, dtype=torch.uint8, device="cuda") for _ in range(4)]
    torch.cuda._sleep(_LAG_CYCLES)
    for number, target in enumerate(targets):
        source = bytes_of(1000, seed=number)
        ring.copy(source, target)
        source.zero_()
    for number, target in enumerate(targets):
        assert torch.equal(target.cpu(), bytes_of(1000, seed=number)), number


@pytest.mark.gpu
def test_a_ring_copy_runs_on_the_current_stream():
    stream = torch.cuda.Stream()
    source = bytes_of((16 << 20) + 5)  # a whole piece and a little more
    target = torch.zeros_like(source, device="cuda")
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        StagingRing().copy(source, target)
    stream.synchronize()
    assert torch.equal(target.cpu(), source)
