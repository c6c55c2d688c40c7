"""Every random draw of the framework. All draws go through `chance`; nothing reads a global seed.

Three kinds of chance implement the same four draws:

    Keyed(seed)     a counter-based generator: the numbers at a place depend on nothing but the
                    place
    Coupled(seed)   one exponential race per position: the output is the same for every drafter
    Enumerate()     runs the code once per possible outcome and multiplies the probabilities: the
                    exact law, no noise

Letters: B rows, n places, V vocabulary, k siblings.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cache, cached_property, lru_cache
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specdec.errors import integer

Out = TypeVar("Out")
Part = slice | Tensor
INT64 = (-(1 << 63), (1 << 63) - 1)


@runtime_checkable
class Committed(Protocol):
    """The part of `specdec.State` that keys a round's draws."""

    @property
    def request_ids(self) -> Int[Tensor, " B"]: ...

    @property
    def lengths(self) -> Int[Tensor, " B"]: ...  # committed tokens


class Sites(NamedTuple):
    """The places of n draws. A site that is not live draws nothing and answers 0."""

    rows: Int[Tensor, " n"]  # of the batch
    # the node of the law: the parent for a draw of children, the node itself for its coin
    nodes: Int[Tensor, " n"]
    ranks: Int[Tensor, " n"]  # sibling rank of the (first) draw
    depths: Int[Tensor, " n"]  # of the node
    live: Bool[Tensor, " n"]


class Draws(ABC):
    """The chance of one round. `purpose` separates draws at the same node: "draft", "accept",
    "residual" ..."""

    by_place = False  # a draw depends on its place alone: one that nobody looks at changes nothing

    @abstractmethod
    def bernoulli(self, p: Float[Tensor, " n"], at: Sites, purpose: str) -> Bool[Tensor, " n"]:
        """u < p for a u uniform on [0, 1). Strict, so that p = 0 never happens."""

    def places(self, at: Sites, purpose: str, k: int = 1) -> "Places":
        """The same draws for places that are known in advance, up to `k` draws at each."""
        return Places(self, at, purpose)

    @abstractmethod
    def categorical(self, law: Float[Tensor, "n V"], at: Sites, purpose: str) -> Int[Tensor, " n"]:
        """Tokens from `law` (non-negative, any positive sum). Weight 0 is never drawn."""

    @abstractmethod
    def without_replacement(
        self, law: Float[Tensor, "n V"], k: int, at: Sites, purpose: str
    ) -> Int[Tensor, "n k"]:
        """Distinct tokens in sampling order; entries past the support of `law` are meaningless."""

    @abstractmethod
    def independent(
        self, law: Float[Tensor, "n V"], k: int, at: Sites, purpose: str
    ) -> Int[Tensor, "n k"]:
        """Independent tokens."""


class Places:
    """Places of later draws, used part by part: `part` picks some of them, `live` (n,) says which
    of those are drawn at (None: all)."""

    def __init__(self, draws: Draws, at: Sites, purpose: str) -> None:
        self.draws, self.at, self.purpose = draws, at, purpose

    def _sites(self, part: Part, live: Tensor | None) -> Sites:
        rows, nodes, ranks, depths, alive = (each[part] for each in self.at)
        return Sites(rows, nodes, ranks, depths, alive if live is None else live)

    def bernoulli(self, part: Part, p: Tensor, live: Tensor | None) -> Tensor:
        return self.draws.bernoulli(p, self._sites(part, live), self.purpose)

    def categorical(self, part: Part, law: Tensor, live: Tensor | None) -> Tensor:
        return self.draws.categorical(law, self._sites(part, live), self.purpose)

    def independent(self, part: Part, law: Tensor, k: int, live: Tensor | None) -> Tensor:
        return self.draws.independent(law, k, self._sites(part, live), self.purpose)

    def without_replacement(self, part: Part, law: Tensor, k: int, live: Tensor | None) -> Tensor:
        return self.draws.without_replacement(law, k, self._sites(part, live), self.purpose)


class Chance(ABC):
    coupled = False  # if so, every rule except naive and greedy must be refused

    @abstractmethod
    def round(self, state: Committed) -> Draws:
        """The draws of the round that starts at `state`."""


# -------------------------------------------------------------------------------------------- Keyed


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_NODE, _RANK, _TOKEN = (
    _signed(odd) for odd in (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03, 0x8CB92BA72F3D8DD7)
)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


@cache
def _purpose_key(purpose: str) -> int:
    return _signed(zlib.crc32(purpose.encode()) * 0x2545F4914F6CDD1D)


def _mix(key: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64 (which wraps); `& mask` makes the arithmetic shifts
    logical."""
    key = (key ^ ((key >> 30) & ((1 << 34) - 1))) * _FIRST
    key = (key ^ ((key >> 27) & ((1 << 37) - 1))) * _SECOND
    return key ^ ((key >> 31) & ((1 << 33) - 1))


def _unit(bits: Tensor) -> Tensor:
    """53 of 64 bits as a float64 in [0, 1)."""
    return ((bits >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def inverse(law: Float[Tensor, "n V"], u: Float[Tensor, "n k"]) -> Int[Tensor, "n k"]:
    """Tokens at quantiles u of `law`: the first token whose cumulative weight
    exceeds u times the sum.

    Weights of 0 leave the cumulative sum unchanged, so such a token is never the first to exceed
    anything, whatever u is.
    """
    cumulative = law.double().cumsum(-1)
    return torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).clamp(
        max=law.shape[-1] - 1
    )


class Keyed(Chance):
    """Draws keyed by (seed, request id, committed length at the start of the round, node, rank,
    purpose).

    Position alone would be wrong as a key: siblings share a position, and after a partial
    acceptance the next round returns to positions whose coins are already known to have failed. The
    values are the same on CPU and GPU (an integer hash).
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = integer("seed", seed, *INT64)

    def round(self, state: Committed) -> "KeyedDraws":
        return KeyedDraws(self.seed, state.request_ids, state.lengths)


class KeyedByRow(Chance):
    """`Keyed`, with a seed for each row: a row's draws are those of `Keyed` with its seed."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.seeds = torch.zeros(rows, dtype=torch.long, device=device)

    def seat(self, row: int, seed: int) -> None:
        """From now on this is the row's seed."""
        self.seeds[row] = seed

    def round(self, state: Committed) -> "KeyedDraws":
        return KeyedDraws(self.seeds, state.request_ids, state.lengths)


class KeyedDraws(Draws):
    by_place = True

    def __init__(self, seed: int | Tensor, request_ids: Tensor, lengths: Tensor) -> None:
        self.seed, self.request_ids, self.lengths = seed, request_ids, lengths

    @cached_property
    def rows(self) -> Tensor:
        """(B,) hash of seed, request and committed length. A greedy round never asks for it."""
        seed = self.seed  # of the run, or (B,) of each row; a tensor wraps as _signed does
        key = seed * _NODE + 1 if isinstance(seed, Tensor) else _signed(seed * _NODE + 1)
        requests = _mix(self.request_ids + key)
        return _mix(requests + self.lengths * _NODE)

    def uniform(self, at: Sites, k: int, purpose: str) -> Tensor:
        """(n, k) numbers in [0, 1) for ranks at.ranks .. at.ranks + k - 1. The one place where keys
        become numbers."""
        key = self.rows[at.rows] + at.nodes * _NODE + at.ranks * _RANK + _purpose_key(purpose)
        if k == 1:
            return _unit(_mix(key[:, None]))
        return _unit(_mix(key[:, None] + torch.arange(k, device=key.device) * _RANK))

    def bernoulli(self, p: Float[Tensor, " n"], at: Sites, purpose: str) -> Bool[Tensor, " n"]:
        return (self.uniform(at, 1, purpose)[:, 0] < p) & at.live

    def places(self, at: Sites, purpose: str, k: int = 1) -> "KeyedPlaces":
        """One hash for all of them."""
        return KeyedPlaces(self.uniform(at, k, purpose), at.live)

    def categorical(self, law: Float[Tensor, "n V"], at: Sites, purpose: str) -> Int[Tensor, " n"]:
        return self.independent(law, 1, at, purpose)[:, 0]

    def independent(
        self, law: Float[Tensor, "n V"], k: int, at: Sites, purpose: str
    ) -> Int[Tensor, "n k"]:
        return inverse(law, self.uniform(at, k, purpose)) * at.live[:, None]

    def without_replacement(
        self, law: Float[Tensor, "n V"], k: int, at: Sites, purpose: str
    ) -> Int[Tensor, "n k"]:
        return one_after_the_other(law, self.uniform(at, k, purpose)) * at.live[:, None]


def numbers_by_node(chance: KeyedDraws, nodes: int, purposes: tuple[str, ...]) -> Tensor:
    """(p, B, N) numbers in [0, 1): for each purpose one at every node (`KeyedDraws.uniform` at rank
    0), in one hash."""
    keys = _keys_by_node(nodes, purposes, chance.lengths.device)
    return _unit(_mix(chance.rows[:, None] + keys))


@lru_cache(64)
def _keys_by_node(nodes: int, purposes: tuple[str, ...], device: torch.device) -> Tensor:
    """(p, 1, N)"""
    own = torch.tensor([_purpose_key(purpose) for purpose in purposes], device=device)
    return own[:, None, None] + torch.arange(nodes, device=device) * _NODE


class NumberedDraws(KeyedDraws):
    """The same draws where the numbers u (n, k) of all places are given, as in a whole draft
    (`specdec.models.whole`)."""

    def __init__(self, u: Tensor) -> None:
        self.u = u

    def places(self, at: Sites, purpose: str, k: int = 1) -> "KeyedPlaces":
        return KeyedPlaces(self.u, at.live)


class KeyedPlaces(Places):
    """Places whose numbers u (n, k) have been computed."""

    def __init__(self, u: Tensor, live: Tensor) -> None:
        self.u, self.live = u, live

    def _alive(self, part: Part, live: Tensor | None) -> Tensor:
        return self.live[part] if live is None else live

    def bernoulli(self, part: Part, p: Tensor, live: Tensor | None) -> Tensor:
        return (self.u[part, 0] < p) & self._alive(part, live)

    def categorical(self, part: Part, law: Tensor, live: Tensor | None) -> Tensor:
        return self.independent(part, law, 1, live)[:, 0]

    def independent(self, part: Part, law: Tensor, k: int, live: Tensor | None) -> Tensor:
        return inverse(law, self.u[part, :k]) * self._alive(part, live)[:, None]

    def without_replacement(self, part: Part, law: Tensor, k: int, live: Tensor | None) -> Tensor:
        return one_after_the_other(law, self.u[part, :k]) * self._alive(part, live)[:, None]


def one_after_the_other(law: Float[Tensor, "n V"], u: Float[Tensor, "n k"]) -> Int[Tensor, "n k"]:
    """Distinct tokens: each is drawn from `law` without the tokens before it."""
    left, drawn = law.double(), []
    for rank in range(u.shape[1]):
        token = inverse(left, u[:, rank : rank + 1])
        drawn.append(token)
        left = left.scatter(1, token, 0.0)
    return torch.cat(drawn, 1)


# ------------------------------------------------------------------------------------------ Coupled


class Coupled(Chance):
    """One exponential race per (seed, request id, position): token x wins where E_x / p(x) is
    smallest (Daliri et al. 2408.07978). The winner does not depend on what was drafted, so runs
    with different drafters agree token by token.
    """

    coupled = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = integer("seed", seed, *INT64)

    def round(self, state: Committed) -> "CoupledDraws":
        return CoupledDraws(
            _mix(state.request_ids + _signed(self.seed * 0x9E3779B97F4A7C15 + 2)), state.lengths
        )


class CoupledDraws(Draws):
    by_place = True

    def __init__(self, requests: Tensor, lengths: Tensor) -> None:
        self.requests, self.lengths = requests, lengths

    def finish(self, law: Tensor, at: Sites) -> Tensor:
        """(n, V) finishing times E / law of the position that follows each site; infinite where the
        law is 0."""
        key = _mix(self.requests[at.rows] + (self.lengths[at.rows] + at.depths) * _NODE)
        tokens = torch.arange(law.shape[-1], device=law.device) * _TOKEN
        u = _unit(_mix(key[:, None] + tokens)) + 2.0**-54
        return torch.where(law > 0, -u.log() / law.double(), torch.inf)

    def bernoulli(self, p: Float[Tensor, " n"], at: Sites, purpose: str) -> Bool[Tensor, " n"]:
        raise ValueError(
            "coupled chance has races, not coins: use the verifier 'naive' (or 'greedy' at "
            "temperature 0)"
        )

    def categorical(self, law: Float[Tensor, "n V"], at: Sites, purpose: str) -> Int[Tensor, " n"]:
        return self.finish(law, at).argmin(-1) * at.live

    def without_replacement(
        self, law: Float[Tensor, "n V"], k: int, at: Sites, purpose: str
    ) -> Int[Tensor, "n k"]:
        return self.finish(law, at).topk(k, largest=False, sorted=True).indices * at.live[:, None]

    def independent(
        self, law: Float[Tensor, "n V"], k: int, at: Sites, purpose: str
    ) -> Int[Tensor, "n k"]:
        """There is one race per position. Returns its first k finishers, since k copies of the
        winner would be useless."""
        ranked = self.without_replacement(law, min(k, law.shape[-1]), at, purpose)
        ranked = torch.where(law.gather(1, ranked) > 0, ranked, ranked[:, :1])
        return torch.cat([ranked, ranked[:, :1].expand(-1, k - ranked.shape[1])], 1)


# ---------------------------------------------------------------------------------------- Enumerate


class Enumerate(Chance):
    """The exact law of the code that runs under it.

        for probability, out in Enumerate().runs(lambda chance: generate(..., chance=chance)): ...

    calls the function once per possible outcome of its draws, depth first, and yields the
    probability of each. The probabilities of all outcomes sum to 1. One row only.
    """

    def runs(self, program: Callable[["Trace"], Out]) -> Iterator[tuple[float, Out]]:
        """Every outcome of `program` with its probability. The program must be a function of its
        draws alone."""
        script: list[
            tuple[int, list[tuple[int, float]]]
        ] = []  # per draw: the branch taken, and all (outcome, weight)
        while True:
            trace = Trace(script)
            out = program(trace)
            trace.check_end()
            yield trace.probability, out
            script = trace.script
            while script and script[-1][0] + 1 == len(script[-1][1]):
                script.pop()
            if not script:
                return
            taken, branches = script.pop()
            script.append((taken + 1, branches))

    def round(self, state: Committed) -> Draws:
        raise ValueError(
            "pass the chance that Enumerate().runs gives to its function, not Enumerate itself"
        )


ROUNDING = 1e-14  # a branch of smaller probability exists only by rounding
NO_FUNCTION = (
    "the program is not a function of its draws: {} (a drafter that remembers anything of other "
    "rows or runs has to say `learns = True`)"
)


def _apart(one: dict[int, float], other: dict[int, float]) -> bool:
    """Whether two laws differ by more than rounding."""
    return any(abs(one.get(x, 0.0) - other.get(x, 0.0)) > 1e-3 for x in one.keys() | other.keys())


class Trace(Chance, Draws):
    """One run under `Enumerate`: repeats the draws of its script, then takes the first branch of
    each new one."""

    def __init__(self, script: list[tuple[int, list[tuple[int, float]]]]) -> None:
        self.script, self.repeated = list(script), len(script)
        self.position = 0
        self.probability = 1.0

    def round(self, state: Committed) -> "Trace":
        if len(state.request_ids) != 1:
            raise ValueError(f"Enumerate follows one row, this run has {len(state.request_ids)}")
        return self

    def choose(self, weights: list[float]) -> int:
        total = sum(weights)
        branches = [
            (outcome, weight / total)
            for outcome, weight in enumerate(weights)
            if weight > ROUNDING * total
        ]
        if not branches:
            raise ValueError(f"a draw from a law without support: {weights}")
        if len(branches) == 1:
            return branches[0][0]
        if self.position == len(self.script):
            self.script.append((0, branches))
        taken, known = self.script[self.position]
        if known is not branches and _apart(dict(known), dict(branches)):
            raise ValueError(NO_FUNCTION.format("a repeat drew from another law"))
        self.position += 1
        outcome, probability = known[taken]
        self.probability *= probability
        return outcome

    def check_end(self) -> None:
        """Raises ValueError if the program has drawn fewer times than before."""
        if self.position < self.repeated:
            raise ValueError(NO_FUNCTION.format("a repeat drew less"))

    def bernoulli(self, p: Float[Tensor, " n"], at: Sites, purpose: str) -> Bool[Tensor, " n"]:
        heads = [
            bool(self.choose([1 - min(max(chance, 0.0), 1.0), min(max(chance, 0.0), 1.0)]))
            if live
            else False
            for chance, live in zip(p.double().tolist(), at.live.tolist(), strict=True)
        ]
        return torch.tensor(heads, dtype=torch.bool)

    def categorical(self, law: Float[Tensor, "n V"], at: Sites, purpose: str) -> Int[Tensor, " n"]:
        return self.independent(law, 1, at, purpose)[:, 0]

    def independent(
        self, law: Float[Tensor, "n V"], k: int, at: Sites, purpose: str
    ) -> Int[Tensor, "n k"]:
        return self._draw(law, k, at, replace=True)

    def without_replacement(
        self, law: Float[Tensor, "n V"], k: int, at: Sites, purpose: str
    ) -> Int[Tensor, "n k"]:
        return self._draw(law, k, at, replace=False)

    def _draw(self, law: Tensor, k: int, at: Sites, replace: bool) -> Tensor:
        drawn = torch.zeros(len(law), k, dtype=torch.long)
        for site, (weights, live) in enumerate(
            zip(law.double().tolist(), at.live.tolist(), strict=True)
        ):
            for rank in range(k if live else 0):
                if sum(weights) <= 0:
                    break
                token = self.choose(weights)
                drawn[site, rank] = token
                if not replace:
                    weights[token] = 0.0
        return drawn
