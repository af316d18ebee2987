"""The layouts in tiles, byte by byte: what these bytes are is described in docs/format.md.

A kernel that reads tiles and the code that makes them may be changed together and still agree, with
folders, caches and other programs left behind. These bytes change only when somebody means it.
"""

import pytest
import torch

from martlet.quantization.formats import parse_format
from martlet.quantization.nibbles import pack_nibbles
from martlet.quantization.packing import (
    pack_groups,
    pack_nibble_tiles,
    pack_tiles,
    unpack_groups,
    unpack_nibble_tiles,
    unpack_tiles,
)

# (7 input + 3 row + input / 16) mod 16
NIBBLE_TILE = bytes.fromhex(
    """
e0f157686879dfe00213798a8a9bf102acbd132424359baccedf35464657bdce
6879dfe0e0f157688a9bf1020213798a24359bacacbd13244657bdcecedf3546
13248a9b9bac02133546acbdbdce2435dfe046575768cedff1026879798ae0f1
9bac021313248a9bbdce24353546acbd5768cedfdfe04657798ae0f1f1026879
4657bdcecedf35466879dfe0e0f157680213798a8a9bf10224359bacacbd1324
cedf35464657bdcee0f157686879dfe08a9bf1020213798aacbd132424359bac
798ae0f1f10268799bac021313248a9b3546acbdbdce24355768cedfdfe04657
f1026879798ae0f113248a9b9bac0213bdce24353546acbddfe046575768cedf
acbd132424359baccedf35464657bdce6879dfe0e0f157688a9bf1020213798a
24359bacacbd13244657bdcecedf3546e0f157686879dfe00213798a8a9bf102
dfe046575768cedff1026879798ae0f19bac021313248a9bbdce24353546acbd
5768cedfdfe04657798ae0f1f102687913248a9b9bac02133546acbdbdce2435
0213798a8a9bf10224359bacacbd1324cedf35464657bdcee0f157686879dfe0
8a9bf1020213798aacbd132424359bac4657bdcecedf35466879dfe0e0f15768
3546acbdbdce24355768cedfdfe04657f1026879798ae0f113248a9b9bac0213
bdce24353546acbddfe046575768cedf798ae0f1f10268799bac021313248a9b
"""
)
# (37 input + 11 row + 1) mod 255 - 127
INT8_TILE = bytes.fromhex(
    """
02274c715a7fa4c954799ec3acd1f61c96bbe006ee14395ee80e335841668bb0
2b50759a83a8cdf27da2c7ecd5fa2045bfe40a2f183d628712375c816a8fb4d9
0d32577c658aafd45f84a9ceb7dc0227a1c6eb11f91f4469f3193e634c7196bb
365b80a58eb3d8fd88add2f7e0062b50caef153a23486d921d42678c759abfe4
183d62877095badf6a8fb4d9c2e70d32acd1f61c052a4f74fe24496e577ca1c6
41668bb099bee30993b8dd03eb11365bd5fa20452e53789d284d729780a5caef
23486d927ba0c5ea759abfe4cdf2183db7dc022710355a7f0a2f54796287acd1
4c7196bba4c9ee149ec3e80ef61c4166e0062b50395e83a833587da28bb0d5fa
2e53789d86abd0f580a5caefd8fd2348c2e70d321b40658a153a5f846d92b7dc
577ca1c6afd4f91fa9cef31902274c71eb11365b44698eb33e6388ad96bbe006
395e83a891b6db018bb0d5fae3092e53cdf2183d264b709520456a8f789dc2e7
6287acd1badf052ab4d9fe240d32577cf61c41664f7499be496e93b8a1c6eb11
44698eb39cc1e60c96bbe006ee14395ed8fd234831567ba02b50759a83a8cdf2
6d92b7dcc5ea1035bfe40a2f183d628702274c715a7fa4c954799ec3acd1f61c
4f7499bea7ccf117a1c6eb11f91f4469e3092e533c6186ab365b80a58eb3d8fd
789dc2e7d0f51b40caef153a23486d920d32577c658aafd45f84a9ceb7dc0227
"""
)
# Scales are row + group / 16, zeros 7 + (row + group) mod 3; keys are the format and the inputs.
TABLES = {
    ("int4-g32", 64): """
00000048002c0848003c8048403c884800400049204008490042804920428849
0044004a1044084a0045804a1045884a0046004b1046084b0047804b1047884b
""",
    ("int4-g32-asym", 64): """
0000004700488048002c004808480047003c004880480047403c804888480048
0040804800490048204000470849804800420047804980482042004888490047
00440048004a004710448048084a004800458048804a004810450047884a8048
00460047004b804810460048084b004700470048804b004710478048884b0048
""",
    ("int4-g128", 256): """
00000048003c804800400049004280490044004a0045804a0046004b0047804b
002c0848403c884820400849204288491044084a1045884a1046084b1047884b
""",
    ("int4-g128-asym", 128): """
0000004700488048003c00488048004700408048004900480042004780498048
00440048004a004700458048804a004800460047004b804800470048804b0047
""",
    ("int8-g32", 64): """
00000048003c804800400049004280490044004a0045804a0046004b0047804b
002c0848403c884820400849204288491044084a1045884a1046084b1047884b
""",
}


def _values(rows, columns, value):
    return torch.tensor([[value(r, k) for k in range(columns)] for r in range(rows)])


def _bytes(tensor):
    return tensor.numpy().tobytes()


def test_a_tile_of_4_bits_is_these_512_bytes():
    values = _values(16, 64, lambda r, k: (7 * k + 3 * r + k // 16) % 16).to(torch.uint8)
    packed = pack_nibble_tiles(pack_nibbles(values), 64)
    assert _bytes(packed) == NIBBLE_TILE
    assert torch.equal(unpack_nibble_tiles(packed, 16, 64), pack_nibbles(values))


def test_a_tile_of_int8_is_these_512_bytes():
    values = _values(16, 32, lambda r, k: (37 * k + 11 * r + 1) % 255 - 127).to(torch.int8)
    packed = pack_tiles(values)
    assert _bytes(packed) == INT8_TILE
    assert torch.equal(unpack_tiles(packed, 16, 32), values)


def test_what_pads_a_tile_is_the_integer_that_stands_for_zero():
    one = pack_nibble_tiles(torch.tensor([[0x05]], dtype=torch.uint8), 1)
    assert _bytes(one) == bytes.fromhex("85" + "88" * 511)
    assert _bytes(pack_tiles(torch.tensor([[5]], dtype=torch.int8))) == bytes([133] + [128] * 511)


@pytest.mark.parametrize(("name", "inputs"), TABLES)
def test_a_table_of_scales_is_these_bytes(name, inputs):
    format = parse_format(name)
    num_groups = inputs // format.group_size
    scale = _values(16, num_groups, lambda r, n: r + n / 16).half()
    zero = _values(16, num_groups, lambda r, n: 7 + (r + n) % 3).half()
    zero = zero if format.has_zeros else None
    table = pack_groups(scale, zero, inputs, format)
    assert _bytes(table) == bytes.fromhex(TABLES[name, inputs])
    again, zeros = unpack_groups(table, 16, inputs, format)
    assert torch.equal(again, scale)
    assert zeros is None if zero is None else torch.equal(zeros, zero)


def test_what_pads_a_table_is_the_scale_0_and_the_zero_8():
    format = parse_format("int4-g64-asym")
    one = torch.ones(1, 1, dtype=torch.float16)
    table = pack_groups(one, one, 1, format)
    assert _bytes(table) == bytes.fromhex("003c003c" + "00000048" * 15)
