"""Arrays as compact JSON values, which page.js unpacks.

    pack([1, 2], "u16")     # {"type": "u16", "data": "AQACAA=="}, base64 of little-endian numbers

Types: u8, u16, u32, f32, and bf16, the upper half of a float32 (three digits), for what is only looked at.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

import numpy as np

Packed = dict[str, str]
TYPES = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "f32": "<f4"}


def pack(values: np.ndarray | Sequence[float], kind: str) -> Packed:
    """Numbers in row-major order, as one of the types."""
    array = np.ascontiguousarray(values).ravel()
    if kind == "bf16":
        bits = array.astype("<f4").view("<u4")
        data = ((bits + 0x8000) >> 16).astype("<u2")  # rounded
    else:
        data = array.astype(TYPES[kind])
    return {"type": kind, "data": base64.b64encode(data.tobytes()).decode()}


def pack_ids(values: np.ndarray | Sequence[int], largest: int) -> Packed:
    """Whole numbers from 0 up to `largest`, in the narrowest type."""
    return pack(values, "u8" if largest < 2**8 else "u16" if largest < 2**16 else "u32")


def pack_rows(rows: Iterable[Sequence[int]], largest: int) -> dict[str, Packed]:
    """Lists of whole numbers up to `largest`: {"start": [n + 1], "values": all of them in a row}."""
    arrays = [np.asarray(row, dtype=np.int64) for row in rows]
    start = np.cumsum([0, *map(len, arrays)])
    values = np.concatenate([np.zeros(0, np.int64), *arrays])
    return {"start": pack(start, "u32"), "values": pack_ids(values, largest)}
