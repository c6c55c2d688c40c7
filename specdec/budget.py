"""How much memory an engine may use: in bytes, as pages of a pool or as slots of every row."""

import re
from dataclasses import replace
from typing import NamedTuple

from specdec.errors import integer
from specdec.interfaces import KV, KeepsKV, LanguageModel

UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 10**3, "MB": 10**6}
UNITS |= {"GB": 10**9, "B": 1}
LAYOUTS = ("paged", "contiguous")


class Room(NamedTuple):
    """Where a run keeps what it has read."""

    target: LanguageModel  # whose sessions have the memory that was asked for
    slots: int | None  # of every row, the nodes of a tree included; None: it grows


def room(
    target: LanguageModel, layout: str | None, page: int, memory: int | str | None, seats: int
) -> Room:
    """layout None: the target's own, or pages if `memory` is bounded. Raises ValueError for a size
    that is none, for one that is too small, and for targets without pages."""
    if layout not in (None, *LAYOUTS):
        raise ValueError(f"kv must be 'paged' or 'contiguous', got {layout!r}")
    page = integer("page", page, 1)
    most = None if memory is None else size(memory)
    if most is None and layout is None:
        return Room(target, None)
    if not isinstance(target, KeepsKV):
        if most is None and layout == "contiguous":
            return Room(target, None)
        raise ValueError(
            f"{target.name} ({type(target).__name__}) does not say how much memory a token takes, "
            "so its memory can be neither bounded nor paged; leave memory= and kv= out"
        )
    dtype = target.kv.dtype
    if layout == "contiguous":
        whole = target.with_kv(KV(dtype=dtype))
        slots = None if most is None else most // (seats * whole.bytes_per_token())
        if slots == 0:
            raise _too_small(memory, f"one token in each of {seats} seats")
        return Room(whole, slots)
    kv = KV("paged", page, None, dtype)
    if most is not None:
        pages = most // (page * target.bytes_per_token(kv))
        if pages < 1:
            raise _too_small(memory, f"one page of {page} tokens in every layer")
        kv = replace(kv, pages=pages)
    return Room(target.with_kv(kv), None)


def _too_small(memory: int | str | None, what: str) -> ValueError:
    return ValueError(f"memory={memory!r} is too small for {what}; give more")


def size(memory: int | str) -> int:
    """Bytes of 2147483648, "2GiB" or "512 MiB"."""
    if not isinstance(memory, str):
        return integer("memory", memory, 1)
    parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", memory)
    if parts is None or parts[2] not in UNITS or not float(parts[1]) * UNITS[parts[2]] >= 1:
        raise ValueError(f"memory is a number of bytes or a text such as '2GiB', got {memory!r}")
    return int(float(parts[1]) * UNITS[parts[2]])
