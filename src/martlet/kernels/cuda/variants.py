"""Every set of compile-time choices that the kernels are used with, a row for each source.

What stands here is compiled by a test for all supported cards, on machines without any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["ARCHITECTURES", "VARIANTS"]

# A GTX 1060 up to Blackwell; cards in between (8.7, 10.3, 12.1) have no code of their own. Hopper
# runs the instructions of sm_90a too, which no later card has.
ARCHITECTURES = (
    "sm_61",
    "sm_70",
    "sm_75",
    "sm_80",
    "sm_86",
    "sm_89",
    "sm_90",
    "sm_90a",
    "sm_100",
    "sm_120",
)

_TYPES = (0, 1, 2)  # of activations: float16, bfloat16, float32
_INT8 = {"BITS": 8, "GROUP": 0, "ZEROS": 0}
# Formats of weights with groups: each size, with and without zeros, and int8.
_GROUPED = (
    {"BITS": 4, "GROUP": 32, "ZEROS": 0},
    {"BITS": 4, "GROUP": 64, "ZEROS": 1},
    {"BITS": 4, "GROUP": 128, "ZEROS": 0},
    {"BITS": 8, "GROUP": 128, "ZEROS": 0},
)

# Source without ".cu" -> the definitions of each of its variants; {} is a source without choices.
VARIANTS: Mapping[str, Sequence[Mapping[str, int | str]]] = {
    "attention": [
        *({"ACTIVATION_TYPE": number, "HEAD_DIM": 64, "GROUP": 1} for number in _TYPES),
        {"ACTIVATION_TYPE": 0, "HEAD_DIM": 128, "GROUP": 4},
        {"ACTIVATION_TYPE": 0, "HEAD_DIM": 128, "GROUP": 4, "CACHE_INT8": 1},
        {"ACTIVATION_TYPE": 1, "HEAD_DIM": 80, "GROUP": 1, "CACHE_INT8": 1},
        {"ACTIVATION_TYPE": 2, "HEAD_DIM": 64, "GROUP": 1, "CACHE_INT8": 1},
        {"ACTIVATION_TYPE": 1, "HEAD_DIM": 128, "GROUP": 5, "HEAD_NORM": 1},
        {"ACTIVATION_TYPE": 1, "HEAD_DIM": 256, "GROUP": 2, "SOFTCAP": 1},
        {"ACTIVATION_TYPE": 2, "HEAD_DIM": 96, "GROUP": 4, "HEAD_NORM": 1, "CACHE_INT8": 1},
    ],
    "attention_units": [
        {"ACTIVATION_TYPE": 0, "HEAD_DIM": 64, "GROUP": 1},
        {"ACTIVATION_TYPE": 0, "HEAD_DIM": 128, "GROUP": 4},
        {"ACTIVATION_TYPE": 1, "HEAD_DIM": 128, "GROUP": 8, "HEAD_NORM": 1},
        {"ACTIVATION_TYPE": 1, "HEAD_DIM": 256, "GROUP": 4, "SOFTCAP": 1},
        {"ACTIVATION_TYPE": 0, "HEAD_DIM": 80, "GROUP": 1},
    ],
    "dequantize": [
        *({"ACTIVATION_TYPE": number, **_INT8} for number in _TYPES),
        *(
            {"ACTIVATION_TYPE": number % 3, **format}
            for number, format in enumerate(_GROUPED, start=1)
        ),
    ],
    "embed": [
        *({"ACTIVATION_TYPE": number, **_INT8} for number in _TYPES),
        {"ACTIVATION_TYPE": 1, **_GROUPED[0]},
        {"ACTIVATION_TYPE": 0, **_GROUPED[1]},
    ],
    "finish": [{"ACTIVATION_TYPE": number} for number in _TYPES],
    "gemm": [
        {"ACTIVATION_TYPE": number, "TOKENS": tokens, "GATED": gated, **format}
        for number, tokens, gated, format in (
            (0, 128, 0, _INT8),
            (0, 32, 1, _INT8),
            (1, 64, 0, _INT8),
            (2, 128, 1, _INT8),
            (0, 128, 0, _GROUPED[0]),
            (1, 64, 1, _GROUPED[1]),
            (2, 32, 0, _GROUPED[3]),
        )
    ],
    "gemm_hopper": [
        {"ACTIVATION_TYPE": number, "TOKENS": tokens, "GATED": gated, "GROUPS": groups}
        for number, tokens, gated, groups in ((0, 128, 0, 4), (1, 64, 1, 2), (2, 128, 0, 3))
    ],
    "linear": [
        # Every pair of choices, not every triple: the largest source takes longest.
        {
            "ACTIVATION_TYPE": number,
            "GATED": gated,
            "MATRIX_UNITS": (number + gated) % 2,
            "WARPS": 16,
            "STAGES": 4,
            "MAX_ROWS": 8 if (number + gated) % 2 else 1,
            "RAGGED": gated,
            "NORM": (number + gated) % 3,
            "ACTIVATION": gated,
            **(_INT8 if number != 1 else _GROUPED[gated]),
            **({"ROWS": 1} if number == 0 else {}),
        }
        for number in _TYPES
        for gated in (0, 1)
    ]
    + [
        {
            "ACTIVATION_TYPE": 0,
            "GATED": 0,
            "MATRIX_UNITS": units,
            "WARPS": 8,
            "STAGES": 4,
            "MAX_ROWS": 8 if units else 1,
            "RAGGED": 1,
            "NORM": 1,
            "ACTIVATION": 0,
            "ROWS": 1,
            **_GROUPED[3 if units else 2],
        }
        for units in (0, 1)
    ],
    "linear_one": [
        {
            "ACTIVATION_TYPE": number,
            "GATED": gated,
            "WARPS": warps,
            "CHUNKS": chunks,
            "DEPTH": depth,
            "BLOCKS": blocks,
            "RAGGED": gated,
            "NORM": number,
            "ACTIVATION": gated,
            **format,
        }
        for number, gated, chunks, format, (warps, depth, blocks) in (
            (0, 0, 4, _GROUPED[0], (16, 2, 2)),
            (1, 1, 4, _GROUPED[1], (16, 4, 1)),
            (2, 0, 10, _GROUPED[2], (16, 2, 2)),
            (0, 0, 8, _GROUPED[3], (16, 4, 2)),
            (1, 0, 8, _INT8, (16, 4, 2)),
            (0, 0, 15, _INT8, (32, 5, 1)),
            (2, 1, 8, _INT8, (16, 4, 1)),
        )
    ],
    "linear_several": [
        {
            "ACTIVATION_TYPE": number,
            "GATED": gated,
            "STREAMED": streamed,
            "WARPS": 8 if streamed else 16,
            "STAGES": 6 - 2 * gated,
            "MAX_ROWS": 8 if (number + gated + streamed) % 2 else 16,
            "RAGGED": number % 2,
            "ACTIVATION": gated,
            **(_INT8 if number == 2 else _GROUPED[2 * streamed + gated]),
        }
        for number, gated, streamed in ((0, 0, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (2, 1, 1))
    ],
    "norm": [{"ACTIVATION_TYPE": number} for number in _TYPES],
    "pack_rows": [{"ACTIVATION_TYPE": number} for number in _TYPES],
    "round_rows": [{"ACTIVATION_TYPE": number, "NORM": number} for number in _TYPES],
    "sample": [{}],
    "turn": [
        {"ACTIVATION_TYPE": 0, "HEAD_DIM": 128},
        {"ACTIVATION_TYPE": 1, "HEAD_DIM": 128, "HEAD_NORM": 1},
        {"ACTIVATION_TYPE": 2, "HEAD_DIM": 80, "HEAD_NORM": 1},
    ],
    "step": [{"ACTIVATION_TYPE": number} for number in _TYPES],
}
