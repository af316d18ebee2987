from __future__ import annotations

import pytest

from martlet.kernels.cuda.compiler import compile_options, find_nvrtc, read_source
from martlet.kernels.cuda.gemm_route import (
    Dequantized,
    FromTiles,
    Size,
    choose_route,
    most_panel_bytes,
)
from martlet.kernels.cuda.many_rows import kernel_choice

SHAPES = [(4096, 4096), (12288, 4096), (20480, 4096), (4096, 10240), (40, 96)]


def _routes(capability: tuple[int, int], num_multiprocessors: int) -> dict[Size, FromTiles]:
    """Those of our own kernels: Hopper's library is faster at many tokens of 16 bits."""
    routes = {}
    for tokens in (17, 64, 127, 256, 300, 512, 4000):
        for out_features, in_features in SHAPES:
            for is_gated in (False, True):
                is_half = capability != (9, 0) or tokens < 128
                size = Size(tokens, out_features, in_features, is_gated, is_half)
                route = choose_route(capability, num_multiprocessors, size)
                assert isinstance(route, FromTiles)
                routes[size] = route
    return routes


@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (7, 5)])
def test_cards_without_asynchronous_copies_turn_weights_into_floats(
    capability: tuple[int, int],
) -> None:
    route = choose_route(capability, 20, Size(512, 4096, 4096))
    assert isinstance(route, Dequantized)
    assert route.panel_bytes <= most_panel_bytes(capability)


def test_hopper_multiplies_many_tokens_of_16_bits_with_the_library() -> None:
    for tokens in (128, 256, 4000):
        route = choose_route((9, 0), 132, Size(tokens, 4096, 4096))
        assert isinstance(route, Dequantized)
        assert route.panel_bytes <= most_panel_bytes((9, 0))


def test_only_hopper_takes_warpgroup_products() -> None:
    assert all(route.groups for route in _routes((9, 0), 132).values())
    for capability in ((8, 0), (8, 6), (8, 9), (10, 0), (12, 0)):
        assert not any(route.groups for route in _routes(capability, 60).values())


def test_a_gated_product_sees_whole_sums() -> None:
    for size, route in (_routes((9, 0), 132) | _routes((8, 6), 30)).items():
        if size.is_gated:
            assert route.splits == 1


def test_few_blocks_are_made_more_by_splitting_the_inputs() -> None:
    route = choose_route((9, 0), 132, Size(17, 4096, 10240))
    assert isinstance(route, FromTiles)
    assert route.splits > 1


def test_every_chosen_kernel_fits_into_shared_memory() -> None:
    for route in _routes((9, 0), 132).values():
        _, _, shared_bytes = kernel_choice(route, 0, is_gated=False)
        staged_bytes = 32 * (route.block_rows + 4) * 4
        assert staged_bytes + 256 <= shared_bytes <= 227 << 10
    for route in _routes((8, 6), 30).values():
        _, _, shared_bytes = kernel_choice(route, 0, is_gated=False)
        # Two blocks share the 100 KiB of the smallest of these cards, with 1 KiB of the driver's.
        assert 32 * (route.block_rows + 4) * 4 <= shared_bytes <= 49 << 10


@pytest.mark.slow
def test_no_chosen_kernel_of_hopper_runs_out_of_registers() -> None:
    choices = {
        (kernel_choice(route, 0, size.is_gated)[0], route.tokens, route.groups, size.is_gated)
        for size, route in _routes((9, 0), 132).items()
    }
    for name, tokens, groups, is_gated in sorted(choices):
        _, defines, _ = kernel_choice(FromTiles(tokens, groups, 1), 0, is_gated)
        options = (*compile_options("sm_90a", defines), "--ptxas-options=-v")
        _, log = find_nvrtc("sm_90a").compile(read_source(name), f"{name}.cu", options)
        # The assembler says so too when it makes asynchronous products wait for one another.
        assert "serialized" not in log
        assert log.count(" 0 bytes spill stores, 0 bytes spill loads") == 2
