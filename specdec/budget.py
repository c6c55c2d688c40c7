"""How much memory an engine may use: in bytes, as pages of a pool or as slots of every row."""

import copy
import re
from dataclasses import replace
from typing import NamedTuple

import torch

from specdec.errors import integer
from specdec.interfaces import KV, Drafter, KeepsKV, LanguageModel, OpenedPages
from specdec.models.paged import Among
from specdec.sampling import Sampling

UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 10**3, "MB": 10**6}
UNITS |= {"GB": 10**9, "B": 1}
LAYOUTS = ("paged", "contiguous")


class Room(NamedTuple):
    """Where a run keeps what it has read."""

    target: LanguageModel  # whose sessions have the memory that was asked for
    slots: int | None  # of every row, the nodes of a tree included; None: it grows


def room(
    target: LanguageModel,
    layout: str | None,
    page: int,
    memory: int | str | None,
    seats: int,
    drafter: Drafter,
) -> Room:
    """layout None: the target's own, or pages if `memory` is bounded. A size in pages is for the
    target's memory and for that of the drafter, as many pages each. Raises ValueError for a size
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
        own, beside = target.bytes_per_token(kv), beside_of(drafter, target.with_kv(kv), seats)
        pages = most // (page * (own + beside))
        if pages < 1:
            drafts = f" of the target and of the drafter ({own} and {beside} bytes a token)"
            what = f"one page of {page} tokens in every layer{drafts if beside else ''}"
            raise _too_small(memory, what)
        kv = replace(kv, pages=pages, among=Among())
    return Room(target.with_kv(kv), None)


def beside_of(drafter: Drafter, target: LanguageModel, seats: int) -> int:
    """Bytes that a drafter keeps of a token in pages of its own."""
    begun = copy.copy(drafter)
    with torch.no_grad():
        begun.begin(target, seats, Sampling())
    found = sum(one.token_bytes for one in begun.opened if isinstance(one, OpenedPages))
    for one in begun.opened:
        one.close()
    return found


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
