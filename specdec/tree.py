"""Token trees. A tree knows tokens and parents; it has never heard of a model.

Letters: B rows, N nodes (root included), V vocabulary, D depth.

    def ── read ── _csv        node   0    1     2     3     4     5
     │      └───── _table      token  def  read  load  _csv  _tab  _csv
     └─ load ───── _csv        parent -1   0     0     1     1     2

Node 0 is the root: the last committed token, not yet in the target's cache. Children stand in the order in which they were
drawn. A node that a row does not use has parent -1.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


class SiblingLaw(StrEnum):
    """How the children of a node were drawn. It decides which acceptance rules are exact."""

    DET = "det"  # deterministic: n-gram, top-k, Medusa, EAGLE-2; or any tree that was pruned after its values were seen
    WOR = "wor"  # sampled from q without replacement
    WR = "wr"  # sampled from q independently; duplicates happen
    HUB = "hub"  # the k-1 most probable tokens, then one drawn from the rest of q


@dataclass(frozen=True, eq=False)
class TokenTree:
    """One tree per row, padded to N nodes.

    tokens   (B, N) long; column 0 is the root
    parents  (B, N) long; parents[:, 0] = -1; a node's parent comes before it; -1 elsewhere: unused
    law      how siblings were drawn, the same for the whole tree
    q        (B, N, V) floating: q[b, i] is the very law that the children of node i were drawn from; None for DET
    levels   a bound on the depth that is known without asking the device; N - 1 if not given
    width    a bound on the number of siblings, likewise; N - 1 if not given (on a CPU, counted)
    resume   (layer, states (B, N, d)) from a drafter that has run every node through the target's lower layers

    Raises ValueError for a malformed tree. On a CPU that happens here; a tree made on an accelerator is checked when the
    loop reads it together with the verdict.
    """

    tokens: Tensor
    parents: Tensor
    law: SiblingLaw = SiblingLaw.DET
    q: Tensor | None = None
    levels: int = -1
    width: int = -1
    resume: tuple[int, Tensor] | None = None
    shape_is_known: bool = field(default=False, repr=False)  # for constructors whose parents are right by construction

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.shape != self.parents.shape or self.tokens.shape[1] == 0:
            raise ValueError(
                f"a tree needs tokens and parents of one shape (rows, nodes >= 1), got {tuple(self.tokens.shape)} and "
                f"{tuple(self.parents.shape)}"
            )
        if self.law is not SiblingLaw.DET and self.q is None and self.num_nodes > 1:
            raise ValueError(
                f"a {self.law.name} tree must carry q (rows, nodes, vocabulary), the law its nodes came from"
            )
        if self.q is not None and (self.q.ndim != 3 or self.q.shape[:2] != self.tokens.shape):
            raise ValueError(
                f"q must be (rows, nodes, vocabulary) = ({self.rows}, {self.num_nodes}, V), got {tuple(self.q.shape)}"
            )
        if not 0 <= self.levels < self.num_nodes:
            object.__setattr__(self, "levels", self.num_nodes - 1)
        if self.tokens.device.type == "cpu" and not self.shape_is_known:
            parents = self.parents.numpy()
            faults = self.structure_faults(self.tokens.numpy(), parents, self.law, self.levels)
            for row in np.flatnonzero(faults.any(1)):
                raise ValueError(f"malformed tree in row {row}: {self.describe(faults[row], self.STRUCTURE)}")
            if self.width < 0:
                counts = [np.bincount(row[row >= 0], minlength=1).max() for row in parents]
                object.__setattr__(self, "width", int(max(counts)))
        if self.width < 0:
            object.__setattr__(self, "width", self.num_nodes - 1)

    @classmethod
    def root(cls, tokens: Tensor, law: SiblingLaw = SiblingLaw.DET) -> "TokenTree":
        """The empty tree: only the roots (B,)."""
        numbers, above, below = _chain(1, tokens.device)
        tree = cls(tokens[:, None], above.expand(len(tokens), -1), law, levels=0, width=0, shape_is_known=True)
        tree.__dict__["ancestors"] = below.expand(len(tokens), -1, -1)
        tree.__dict__["depths"] = numbers.expand(len(tokens), -1)
        return tree

    @classmethod
    def chain(
        cls, tokens: Tensor, lengths: Tensor | None, law: SiblingLaw = SiblingLaw.DET, q: Tensor | None = None
    ) -> "TokenTree":
        """Node i's only child is node i + 1; tokens (B, N) with the root first; lengths (B,): drafted nodes per row,
        None where every row has all of them."""
        numbers, above, below = _chain(tokens.shape[1], tokens.device)
        if lengths is None:
            parents, depths = above.expand(len(tokens), -1), numbers.expand(len(tokens), -1)
        else:
            used = numbers <= lengths[:, None]
            parents, depths = torch.where(used, above, -1), numbers * used
        chain = cls(tokens, parents, law, q, tokens.shape[1] - 1, 1, shape_is_known=True)
        chain.__dict__["ancestors"] = below.expand(len(tokens), -1, -1)
        chain.__dict__["depths"] = depths
        chain.__dict__["is_chain"] = True
        return chain

    @cached_property
    def is_chain(self) -> bool:
        """Whether it was made as a chain, so that the last node sees all others."""
        return self.num_nodes == 1

    def grow(self, tokens: Tensor, parents: Tensor) -> "TokenTree":
        """This tree with one more level of nodes: tokens (B, m), parents (B, m) among the nodes so far, -1: unused.

        What is known of the smaller tree is carried over, so a drafter pays for each level once.
        """
        old, new = self.num_nodes, tokens.shape[1]
        grown = TokenTree(
            torch.cat([self.tokens, tokens], 1),
            torch.cat([self.parents, parents], 1),
            levels=self.levels + 1,
            width=max(self.width, new),
            shape_is_known=True,
        )
        above, used = parents.clamp(min=0), parents >= 0
        ancestors = self.ancestors.new_zeros(self.rows, old + new, old + new)
        ancestors[:, :old, :old] = self.ancestors
        ancestors[:, old:, :old] = self.ancestors.gather(1, above[:, :, None].expand(-1, -1, old))
        ancestors.diagonal(dim1=1, dim2=2)[:, old:] = True
        grown.__dict__["ancestors"] = ancestors
        grown.__dict__["depths"] = torch.cat([self.depths, (self.depths.gather(1, above) + 1) * used], 1)
        return grown

    def drawn_from(self, law: SiblingLaw, q: Tensor | None, width: int) -> "TokenTree":
        """The same tree with its sibling law declared."""
        return self._again(law=law, q=q, width=width)

    def resumed(self, layer: int, states: Tensor) -> "TokenTree":
        """The same tree with what a drafter has computed of it: the stream (B, N, d) that enters `layer`."""
        return self._again(resume=(layer, states))

    def _again(self, **changes: Any) -> "TokenTree":
        """This tree with other fields of the same nodes; what is known of their structure is carried over."""
        tree = replace(self, **changes)
        tree.__dict__.update(
            {name: self.__dict__[name] for name in ("ancestors", "depths", "is_chain") if name in self.__dict__}
        )
        return tree

    def with_tokens(self, tokens: Tensor) -> "TokenTree":
        """The same structure with other tokens (B, N): a static tree is worked out once."""
        other = replace(self, tokens=tokens, shape_is_known=True)
        known = ("ancestors", "depths", "used", "ranks", "is_chain")
        other.__dict__.update({name: self.__dict__[name] for name in known if name in self.__dict__})
        return other

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def num_nodes(self) -> int:
        """N, the root included."""
        return self.tokens.shape[1]

    @cached_property
    def used(self) -> Tensor:
        """(B, N) bool: the root and every node with a parent."""
        used = self.parents >= 0
        used[:, 0] = True
        return used

    @cached_property
    def ancestors(self) -> Tensor:
        """(B, N, N) bool: [b, i, j] says that node j lies on the path from the root to node i, both included."""
        nodes = torch.arange(self.num_nodes, device=self.tokens.device)
        own = (nodes[:, None] == nodes).expand(self.rows, -1, -1)
        parents = self.parents.clamp(min=0)[:, :, None].expand(-1, -1, self.num_nodes)
        reached = own
        for _ in range(self.levels):
            reached = own | (reached.gather(1, parents) & self.used[:, :, None])
        return reached

    @cached_property
    def depths(self) -> Tensor:
        """(B, N) long: edges from the root; 0 for unused nodes."""
        return self.ancestors.sum(-1) - 1

    @cached_property
    def ranks(self) -> Tensor:
        """(B, N) long: how many siblings were drawn before the node."""
        same = (self.parents[:, :, None] == self.parents[:, None, :]) & (self.parents[:, :, None] >= 0)
        return same.tril(-1).sum(-1)

    def path(self, row: int, node: int) -> list[int]:
        """Node numbers from below the root down to `node`."""
        path: list[int] = []
        while node > 0:
            path.insert(0, node)
            node = int(self.parents[row, node])
        return path

    STRUCTURE = (
        "the root's parent must be -1",
        "a node's parent must be an earlier node of the same row (no cycles, no parent after its child)",
        "a node hangs below an unused node",
        "a token id is negative",
        "two siblings carry one token, which sampling without replacement cannot give",
        "the tree is deeper than its `levels`",
    )
    CONTENT = (
        "q gives a drawn token probability 0 (q must be the very law that was sampled from)",
        "q has NaN or does not sum to 1 at a node with children",
    )

    @staticmethod
    def structure_faults(tokens: np.ndarray, parents: np.ndarray, law: SiblingLaw, levels: int) -> np.ndarray:
        """(B, 6) bool, in the order of `STRUCTURE`, of tokens and parents (B, N) on the host."""
        nodes = parents.shape[1]
        rows = np.arange(len(parents))[:, None]
        drafted = parents >= 0
        above = parents.clip(0, nodes - 1)
        used = drafted.copy()
        used[:, 0] = True
        depths = np.zeros_like(parents)
        for _ in range(levels):
            depths = (depths[rows, above] + 1) * drafted
        faults = [
            parents[:, 0] != -1,
            ((parents >= np.arange(nodes)) | (parents < -1)).any(1),
            (drafted & ~used[rows, above]).any(1),
            ((tokens < 0) & used).any(1),
            np.zeros(len(parents), dtype=bool),
            (drafted & (depths != depths[rows, above] + 1)).any(1),
        ]
        if law is SiblingLaw.WOR and nodes > 2:
            same = (parents[:, :, None] == parents[:, None]) & (tokens[:, :, None] == tokens[:, None])
            faults[4] = (np.tril(same, -1) & drafted[:, :, None]).any((1, 2))
        return np.stack(faults, 1)

    def q_faults(self) -> Tensor:
        """(B, 2) bool, in the order of `CONTENT`. Computed on the device: q does not leave it."""
        assert self.q is not None
        drafted = self.parents >= 0
        parents = self.parents.clamp(min=0)
        rows = torch.arange(self.rows, device=parents.device)[:, None]
        drawn = self.q[rows, parents, self.tokens.clamp(0, self.q.shape[-1] - 1)]
        total = self.q.sum(-1).gather(1, parents)
        zero = (drafted & ~(drawn > 0) & ~drawn.isnan()).any(1)
        no_law = (drafted & ~((total - 1).abs() < 1e-2)).any(1)
        return torch.stack([zero, no_law], 1)

    @staticmethod
    def describe(faults: Iterable[bool], names: tuple[str, ...]) -> str:
        """What is wrong, or an empty string."""
        return "; ".join(name for name, bad in zip(names, faults, strict=True) if bad)


@lru_cache(64)
def _chain(nodes: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Node numbers (N,), parents (N,) and who sees whom (N, N) in a chain. Shared, so never to be written to."""
    numbers = torch.arange(nodes, device=device)
    return numbers, numbers - 1, numbers[:, None] >= numbers
