"""The forms that a cache of keys and values may have."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["KV_FORMS", "KVForm"]

KVForm = Literal["none", "int8"]
"""none: the type of the activations. int8: integers, and a scale for each vector of a head."""

KV_FORMS: tuple[KVForm, ...] = get_args(KVForm)
