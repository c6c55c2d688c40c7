"""Laws at the nodes of trees: the target's p and the drafter's q, each given the node's own path.

Letters: B rows, N nodes, M nodes of a level, V vocabulary, n places, D depth.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from specdec.sampling import Failed
from specdec.state import State
from specdec.tree import TokenTree


class Laws:
    """The target's laws at the nodes of scored trees, computed when a rule asks for them.

    `laws[rows, nodes]` is (n, V); `laws.at(nodes)` is one node per row, (B, V); `laws.everywhere`
    is (B, N, V); `laws.argmax` (B, N) is the mode of every node's law, enough for temperature 0.
    """

    def __init__(self, logits: Float[Tensor, "B N V"], trees: TokenTree, state: State) -> None:
        self.scores, self.trees, self.state = logits, trees, state
        self.sampling = state.sampling
        self._bad: list[Tensor] = []  # (B,) bool per use

    @property
    def vocabulary(self) -> int:
        return self.scores.shape[-1]

    @cached_property
    def rows(self) -> Int[Tensor, " B"]:
        """Row numbers."""
        return torch.arange(len(self.scores), device=self.scores.device)

    @property
    def faulty(self) -> Bool[Tensor, " B"]:
        """Whether a law used so far was invalid: NaN, or no token left."""
        if not self._bad:
            return torch.zeros(len(self.scores), dtype=torch.bool, device=self.scores.device)
        return self._bad[0] if len(self._bad) == 1 else torch.stack(self._bad).any(0)

    def __getitem__(
        self, index: tuple[Int[Tensor, " n"], Int[Tensor, " n"]]
    ) -> Float[Tensor, "n V"]:
        rows, nodes = index
        logits = self._allowed(picked(self.scores, rows, nodes), rows, nodes)
        law = self.sampling.law(
            logits, lambda: self.prefixes(rows, nodes), failing(self.state, lambda: rows)
        )
        bad = ~self._finite(logits, law)
        none = torch.zeros(len(self.scores), device=bad.device)
        self._bad.append(none.index_add_(0, rows, bad.float()) > 0)
        return law

    def at(self, nodes: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """The laws at one node of each row."""
        one = len(self.scores) == 1
        logits = (
            self.scores[0].index_select(0, nodes) if one else picked(self.scores, self.rows, nodes)
        )
        logits = self._allowed(logits, self.rows, nodes)
        law = self.sampling.law(
            logits, lambda: self.prefixes(self.rows, nodes), failing(self.state, lambda: self.rows)
        )
        self._bad.append(~self._finite(logits, law))
        return law

    @cached_property
    def everywhere(self) -> Float[Tensor, "B N V"]:
        """The laws at all nodes. At a node that its row does not use, the law is arbitrary."""
        logits = self._all_allowed()
        law = self.sampling.law(logits, self._all_prefixes, self._all_failing).view(
            self.scores.shape
        )
        self._bad.append(self._some(~self._finite(logits.view(self.scores.shape), law)))
        return law

    @cached_property
    def argmax(self) -> Int[Tensor, "B N"]:
        scores = self.sampling.logits(self._all_allowed(), self._all_prefixes, self._all_failing)
        most, winners = scores.view(self.scores.shape).max(-1)
        # The largest score is finite if the law is valid; max of NaN is NaN.
        self._bad.append(self._some(~most.isfinite()))
        return winners

    def _some(self, bad: Tensor) -> Tensor:
        """(B,) bool: a node (B, N) that the row uses is bad."""
        return (bad if self.trees.structure.full else bad & self.trees.used).any(1)

    def _finite(self, logits: Tensor, law: Tensor) -> Tensor:
        """Where a law is valid. A NaN anywhere makes every entry of a softmax NaN."""
        return logits.amax(-1).isfinite() if self.sampling.greedy else law[..., 0].isfinite()

    def _allowed(self, logits: Tensor, rows: Tensor, nodes: Tensor) -> Tensor:
        """Logits (n, V) with -inf for what a row's grammar forbids after these nodes."""
        grammars = self.state.grammars
        if grammars is None:
            return logits
        state = self.state
        return grammars.mask(logits, state.text, self.trees, rows, nodes, state.fail)

    def _all_allowed(self) -> Tensor:
        """The same of all nodes, (B N, V)."""
        logits = self.scores.flatten(0, 1)
        if self.state.grammars is None:
            return logits
        return self._allowed(logits, *all_places(self.scores))

    def _all_prefixes(self) -> list[Tensor]:
        return self.prefixes(*all_places(self.scores))

    @property
    def _all_failing(self) -> Failed | None:
        return failing(self.state, lambda: all_places(self.scores)[0])

    def prefixes(self, rows: Tensor, nodes: Tensor) -> list[Tensor]:
        """What processors see at each place: the committed tokens and the drafted path."""
        return prefixes(self.state, self.trees, rows, nodes)


class DraftLaws:
    """The drafter's laws at its own nodes, with the run's sampling and each node's own path."""

    def __init__(self, state: State) -> None:
        self.state, self.sampling = state, state.sampling

    def __call__(
        self,
        logits: Float[Tensor, "B M V"],
        tree: TokenTree,
        start: int,
        across_nodes: bool = False,
    ) -> Float[Tensor, "B M V"]:
        """Laws of nodes start .. start + M - 1. At temperature 0: scores to rank tokens
        by, comparable `across_nodes` (log-probabilities) or only within one."""
        shape, flat = logits.shape, logits.reshape(-1, logits.shape[-1])

        def places() -> tuple[Tensor, Tensor]:
            rows, nodes = all_places(logits)
            return rows, nodes + start

        def paths() -> list[Tensor]:
            return prefixes(self.state, tree, *places())

        state, grammars = self.state, self.state.grammars
        if grammars is not None:
            masked = grammars.mask(flat, state.text, tree, *places(), state.fail)
            # A drafter with few words may know none of those that are allowed.
            flat = torch.where(masked.amax(-1, keepdim=True).isfinite(), masked, flat)
        failed = failing(self.state, lambda: places()[0])
        if self.sampling.greedy:
            scores = self.sampling.logits(flat, paths, failed)
            return (scores.log_softmax(-1) if across_nodes else scores).view(shape)
        return self.sampling.law(flat, paths, failed).view(shape)


def failing(state: State, rows: Callable[[], Tensor]) -> Failed | None:
    """Notes in the state which rows' processors fail, at places of `rows()` (n,). None: a failure
    ends the run."""
    failures = state.failures
    if failures is None or not state.sampling.penalties:
        return None

    def failed(place: int, error: Exception) -> None:
        failures.setdefault(int(rows()[place]), error)

    return failed


def all_places(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and nodes, (B N,) each, of values (B, N, V)."""
    nodes = values.shape[1]
    index = torch.arange(len(values) * nodes, device=values.device)
    return index // nodes, index % nodes


def picked(values: Tensor, rows: Tensor, nodes: Tensor) -> Tensor:
    """(n, V) values[rows, nodes] of (B, N, V), as a copy. This copies whole rows at once. Indexing
    by two tensors copies number by number: several times slower at a large vocabulary."""
    if not values.is_contiguous():
        return values[rows, nodes]
    return values.flatten(0, 1).index_select(0, rows * values.shape[1] + nodes)


def prefixes(state: State, trees: TokenTree, rows: Tensor, nodes: Tensor) -> list[Tensor]:
    """The committed tokens of each row followed by the drafted path to the node; nothing for rows
    that are not live, which no processor needs to see.

    Processors take texts of one length at a time, so the lengths are read from the device: a run
    with processors that look at the prefix reads it more than once a round.
    """
    numbers = torch.arange(trees.num_nodes, device=nodes.device)
    on_path = trees.ancestors[rows, nodes] & (numbers > 0)
    # (n, D), parents come first
    path = torch.where(on_path, numbers, trees.num_nodes).sort(1).values[:, : trees.depth]
    drafted = trees.tokens[rows[:, None], path.clamp(max=trees.num_nodes - 1)]
    lengths, steps = state.lengths[rows], torch.arange(path.shape[1], device=nodes.device)
    texts = torch.cat([state.tokens[rows], torch.zeros_like(drafted)], 1)
    texts.scatter_(1, lengths[:, None] + steps, drafted)
    ends = (lengths + on_path.sum(1)).tolist()
    live = [state.on_host.live[row] for row in rows.tolist()]
    return [text[: end * alive] for text, end, alive in zip(texts, ends, live, strict=True)]


def top(values: Float[Tensor, "n V"], k: int) -> Int[Tensor, "n k"]:
    """Indices of the largest values, largest first; ties go to the lowest index,
    which topk does not promise.

    Values are compared as float32, packed into integers that also carry the index. This works in
    place, since a large tensor takes longer to allocate than to process.
    """
    if k == 1:
        return values.argmax(-1, keepdim=True)
    bits = (values.float() + 0.0).view(torch.int32)  # + 0.0: minus zero and zero are one value
    ordered = bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF)).long()
    index = torch.arange(values.shape[-1], device=values.device)
    return ordered.bitwise_left_shift_(24).sub_(index).topk(k, sorted=True).indices
