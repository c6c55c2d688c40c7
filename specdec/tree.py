"""Token trees. A tree holds tokens and parents; it knows nothing of models.

Letters: B rows, N nodes (root included), V vocabulary.

    def ── read ── _csv        node   0    1     2     3     4     5
     │      └───── _table      token  def  read  load  _csv  _tab  _csv
     └─ load ───── _csv        parent -1   0     0     1     1     2

Node 0 is the root: the last committed token, not yet in the target's memory. Children are in the
order in which they were drawn. A node that a row does not use has parent -1.

A tree is a value. Its structure (parents, and what follows from them) is kept apart from its
content (tokens, q), so that a structure that repeats is computed once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MOST_NODES = 4096  # in a drafted tree: masks are nodes x nodes, and papers stay below 1,100


class SiblingLaw(StrEnum):
    """How the children of a node were drawn. It decides which acceptance rules are exact."""

    DET = "det"  # deterministic: n-gram, top-k, Medusa, EAGLE-2; or pruned after values were seen
    WOR = "wor"  # sampled from q without replacement
    WR = "wr"  # sampled from q independently; duplicates happen
    HUB = "hub"  # the k-1 most probable tokens, then one drawn from the rest of q


@dataclass(frozen=True, eq=False)
class Structure:
    """The parent of every node, in each of B trees. Make one by `chain`, `shared`, `of` or `grow`.

    depth, width and is_chain are bounds that are known without asking the device, and are the same
    on every device. `frame` holds parents that all rows share, if there are any: each row's tree
    is a part of the frame.
    """

    parents: Int[Tensor, "B N"]  # parents[:, 0] = -1; a parent comes before its child
    depths: Int[Tensor, "B N"]  # edges from the root; 0 for unused nodes
    ancestors: Bool[Tensor, "B N N"]  # [b, i, j]: j is on the path to i, itself included
    depth: int  # upper bound on the depth of any node
    width: int  # upper bound on the number of siblings
    is_chain: bool  # every node's only child is the next node
    frame: tuple[int, ...] | None = None
    full: bool = False  # every row has all nodes of the frame

    @classmethod
    def chain(
        cls, rows: int, nodes: int, device: torch.device, lengths: Tensor | None = None
    ) -> "Structure":
        """Node i's only child is node i + 1. lengths (B,): drafted nodes per row; None: all."""
        if lengths is None:
            return _full_chain(rows, nodes, device)
        whole = _full_chain(rows, nodes, device)
        used = whole.depths <= lengths[:, None]
        parents = torch.where(used, whole.parents, -1)
        depth, width = nodes - 1, min(nodes - 1, 1)
        return cls(parents, whole.depths * used, whole.ancestors, depth, width, True, whole.frame)

    @classmethod
    def shared(
        cls, parents: Sequence[int], rows: int, device: torch.device, used: Tensor | None = None
    ) -> "Structure":
        """The same parents in every row; used (B, N) bool: the nodes that a row has (None: all).

        Raises ValueError for parents that do not form a tree.
        """
        whole = _shared(tuple(parents), rows, device)
        if used is None:
            return whole
        below = torch.where(used, whole.parents, -1)
        return cls(
            below,
            whole.depths * used,
            whole.ancestors,
            whole.depth,
            whole.width,
            whole.is_chain,
            whole.frame,
        )

    @classmethod
    def of(
        cls,
        parents: Tensor | Sequence[Sequence[int]],
        device: torch.device | None = None,
        depth: int | None = None,
        width: int | None = None,
    ) -> "Structure":
        """Any trees: parents (B, N). Lists are checked here, and their depth and width are exact.
        A tensor is checked when the loop reads it; depth and width are then the bounds that the
        caller gives, else N - 1.

        Raises ValueError for lists that are not trees.
        """
        if not isinstance(parents, Tensor):
            return _given(np.array(parents, dtype=np.int64, ndmin=2), device or torch.device("cpu"))
        most = parents.shape[1] - 1
        # Clamped, so that no lookup leaves the tree. A parent past the end is still reported.
        parents = parents.clamp(max=most)
        depth = most if depth is None else min(depth, most)
        width = most if width is None else min(width, most)
        ancestors = _ancestors(parents, depth)
        depths = ancestors.sum(-1) - 1
        return cls(parents, depths, ancestors, depth, width, most == 0)

    def grow(self, parents: Tensor, frame: Sequence[int] | None = None) -> "Structure":
        """One more level of nodes: parents (B, m) among the nodes so far, -1: unused.

        frame: the same parents for all rows, if known. What was computed for the smaller structure
        is carried over, so a drafter pays for each level once.
        """
        rows, old = self.parents.shape
        new = parents.shape[1]
        above, used = parents.clamp(min=0), parents >= 0
        ancestors = self.ancestors.new_zeros(rows, old + new, old + new)
        ancestors[:, :old, :old] = self.ancestors
        ancestors[:, old:, :old] = self.ancestors.gather(1, above[:, :, None].expand(-1, -1, old))
        ancestors.diagonal(dim1=1, dim2=2)[:, old:] = True
        depths = torch.cat([self.depths, (self.depths.gather(1, above) + 1) * used], 1)
        whole = None if self.frame is None or frame is None else (*self.frame, *frame)
        return Structure(
            torch.cat([self.parents, parents], 1),
            depths,
            ancestors,
            self.depth + 1,
            max(self.width, new if frame is None else max(map(frame.count, frame))),
            False,
            whole,
        )

    @property
    def rows(self) -> int:
        return self.parents.shape[0]

    @property
    def num_nodes(self) -> int:
        """N, the root included."""
        return self.parents.shape[1]

    @cached_property
    def on_host(self) -> "HostShape | None":
        """The shape on the host, if it is known there."""
        if not self.full or self.frame is None:
            return None
        parents = np.tile(np.array(self.frame), (self.rows, 1))
        return HostShape(parents, host_depths(parents))

    @cached_property
    def used(self) -> Bool[Tensor, "B N"]:
        """The root and every node with a parent."""
        used = self.parents >= 0
        used[:, 0] = True
        return used

    @cached_property
    def ranks(self) -> Int[Tensor, "B N"]:
        """How many siblings were drawn before the node."""
        same = self.parents[:, :, None] == self.parents[:, None, :]
        return (same & (self.parents[:, :, None] >= 0)).tril(-1).sum(-1)


class HostShape(NamedTuple):
    """A structure on the host."""

    parents: np.ndarray  # (B, N)
    depths: np.ndarray  # (B, N)


class TokenTree:
    """One tree per row, padded to N nodes. A value: never write to it or to its tensors.

    tokens   (B, N) long; column 0 is the root
    parents  (B, N), or a Structure; see `Structure.of` for what is known of either
    law      how siblings were drawn, the same for the whole tree
    q        (B, N, V): q[b, i] is the very law that the children of node i were drawn from;
             None for DET
    depth, width  bounds for parents that come as a tensor

    Raises ValueError for shapes that do not go together, and for lists of parents that are not a
    tree. The loop reports faults of values, which it reads with the verdict.
    """

    __slots__ = ("_law", "_q", "_structure", "_tokens")

    def __init__(
        self,
        tokens: Int[Tensor, "B N"],
        parents: Structure | Tensor | Sequence[Sequence[int]],
        law: SiblingLaw = SiblingLaw.DET,
        q: Float[Tensor, "B N V"] | None = None,
        depth: int | None = None,
        width: int | None = None,
    ) -> None:
        for what, given, kind in (("tokens", tokens, Tensor), ("law", law, SiblingLaw)):
            if not isinstance(given, kind):
                raise ValueError(f"{what} must be a {kind.__name__}, got {type(given).__name__}")
        structure = parents
        if not isinstance(structure, Structure):
            if isinstance(structure, Tensor) and structure.ndim != 2:
                raise ValueError(f"parents must be (rows, nodes), got {tuple(structure.shape)}")
            structure = Structure.of(structure, tokens.device, depth, width)
        self._tokens, self._structure, self._law, self._q = tokens, structure, law, q
        if tokens.shape != structure.parents.shape or tokens.shape[1] == 0:
            raise ValueError(
                "a tree needs tokens and parents of one shape (rows, nodes >= 1), got "
                f"{tuple(tokens.shape)} and {tuple(structure.parents.shape)}"
            )
        if law is not SiblingLaw.DET and q is None and self.num_nodes > 1:
            raise ValueError(
                f"a {law.name} tree must carry q (rows, nodes, vocabulary), the law its nodes came "
                "from"
            )
        whole = isinstance(q, Tensor) and q.ndim == 3 and q.shape[:2] == tokens.shape
        if q is not None and not whole:
            came = tuple(q.shape) if isinstance(q, Tensor) else type(q).__name__
            raise ValueError(
                f"q must be (rows, nodes, vocabulary) = ({self.rows}, {self.num_nodes}, V), got "
                f"{came}"
            )

    def __repr__(self) -> str:
        shape = "chains" if self.is_chain else "trees"
        return f"<TokenTree: {self.rows} {self._law.name} {shape} of up to {self.num_nodes} nodes>"

    @classmethod
    def root(cls, tokens: Tensor, law: SiblingLaw = SiblingLaw.DET) -> "TokenTree":
        """The empty tree: only the roots (B,)."""
        return cls(tokens[:, None], _full_chain(len(tokens), 1, tokens.device), law)

    @classmethod
    def chain(
        cls,
        tokens: Tensor,
        lengths: Tensor | None,
        law: SiblingLaw = SiblingLaw.DET,
        q: Tensor | None = None,
    ) -> "TokenTree":
        """Chains of tokens (B, N), the root first; lengths (B,): drafted nodes, None: all."""
        rows, nodes = tokens.shape
        return cls(tokens, Structure.chain(rows, nodes, tokens.device, lengths), law, q)

    def grow(
        self, tokens: Tensor, parents: Tensor, frame: Sequence[int] | None = None
    ) -> "TokenTree":
        """This tree with one more level of nodes, its law and q left out: see `Structure.grow`."""
        return TokenTree(torch.cat([self._tokens, tokens], 1), self._structure.grow(parents, frame))

    def drawn_from(self, law: SiblingLaw, q: Tensor | None) -> "TokenTree":
        """The same tree with its sibling law declared."""
        return TokenTree(self._tokens, self._structure, law, q)

    def within(self, vocabulary: int) -> "TokenTree":
        """The same tree with every token in 0 .. vocabulary - 1, so that a model can look it up.
        Tokens outside are the drafter's fault and are reported; looking one up would end the
        process."""
        return TokenTree(self._tokens.clamp(0, vocabulary - 1), self._structure, self._law, self._q)

    @property
    def tokens(self) -> Tensor:
        """(B, N) long."""
        return self._tokens

    @property
    def structure(self) -> Structure:
        return self._structure

    @property
    def law(self) -> SiblingLaw:
        return self._law

    @property
    def q(self) -> Tensor | None:
        """(B, N, V), or None."""
        return self._q

    @property
    def rows(self) -> int:
        return self._tokens.shape[0]

    @property
    def num_nodes(self) -> int:
        """N, the root included."""
        return self._tokens.shape[1]

    @property
    def parents(self) -> Tensor:
        """(B, N) long."""
        return self._structure.parents

    @property
    def depths(self) -> Tensor:
        """(B, N) long: edges from the root; 0 for unused nodes."""
        return self._structure.depths

    @property
    def ancestors(self) -> Tensor:
        """(B, N, N) bool: [b, i, j]: node j is on the path from the root to node i."""
        return self._structure.ancestors

    @property
    def ranks(self) -> Tensor:
        """(B, N) long: how many siblings were drawn before the node."""
        return self._structure.ranks

    @property
    def used(self) -> Tensor:
        """(B, N) bool: the root and every node with a parent."""
        return self._structure.used

    @property
    def depth(self) -> int:
        """A bound on the depth, known without asking the device."""
        return self._structure.depth

    @property
    def width(self) -> int:
        """A bound on the number of siblings, likewise."""
        return self._structure.width

    @property
    def is_chain(self) -> bool:
        """Whether it was made as a chain: the last node sees all others."""
        return self._structure.is_chain

    def path(self, row: int, node: int) -> list[int]:
        """Node numbers from below the root down to `node`. (Of a malformed tree, as far as parents
        come before their children.)"""
        parents = self.parents[row].tolist()
        path: list[int] = []
        while node > 0:
            path.insert(0, node)
            node = parents[node] if parents[node] < node else 0
        return path


# -------------------------------------------------------------------------------------- faults

STRUCTURE = (
    "the root's parent must be -1",
    "a node's parent must be an earlier node of the same row (no cycles, no parent after its "
    "child)",
    "a node hangs below an unused node",
    "the tree is deeper than its `depth`",
)


def structure_faults(parents: np.ndarray, depths: np.ndarray | None = None) -> np.ndarray:
    """(B, 4) bool, in the order of `STRUCTURE`, of parents (B, N) on the host. depths (B, N): as
    computed for a tree of bounded depth; they are wrong if the tree is deeper."""
    nodes = parents.shape[1]
    drafted = parents >= 0
    used = drafted.copy()
    used[:, 0] = True
    above = parents.clip(0, nodes - 1)
    early = (parents < np.arange(nodes)) & (parents >= -1)
    faults = np.zeros((len(parents), 4), dtype=bool)
    faults[:, 0] = parents[:, 0] != -1
    faults[:, 1] = ~early.all(1)
    faults[:, 2] = (drafted & ~np.take_along_axis(used, above, 1)).any(1)
    if depths is not None:
        faults[:, 3] = (drafted & (depths != np.take_along_axis(depths, above, 1) + 1)).any(1)
    return faults


def host_depths(parents: np.ndarray) -> np.ndarray:
    """(B, N) edges from the root, of parents (B, N) that come before their children."""
    if len(parents) == 1:  # lists are faster here
        found = [0] * parents.shape[1]
        for node, above in enumerate(parents[0].tolist()):
            found[node] = found[above] + 1 if above >= 0 else 0
        return np.array([found])
    depths = np.zeros_like(parents)
    rows = np.arange(len(parents))
    for node in range(1, parents.shape[1]):
        above = parents[:, node]
        depths[:, node] = np.where(above >= 0, depths[rows, above] + 1, 0)
    return depths


def described(faults: Iterable[bool], names: tuple[str, ...]) -> str:
    """What is wrong, or an empty string."""
    return "; ".join(name for name, bad in zip(names, faults, strict=True) if bad)


# ------------------------------------------------------------------------------ worked out once


@lru_cache(256)
def _full_chain(rows: int, nodes: int, device: torch.device) -> Structure:
    numbers = torch.arange(nodes, device=device)
    return Structure(
        (numbers - 1).expand(rows, -1),
        numbers.expand(rows, -1),
        (numbers[:, None] >= numbers).expand(rows, -1, -1),
        nodes - 1,
        min(nodes - 1, 1),
        True,
        tuple(range(-1, nodes - 1)),
        True,
    )


@lru_cache(256)
def _shared(frame: tuple[int, ...], rows: int, device: torch.device) -> Structure:
    if frame == tuple(range(-1, len(frame) - 1)):
        return _full_chain(rows, len(frame), device)
    one = Structure.of([frame], device)
    return Structure(
        one.parents.expand(rows, -1),
        one.depths.expand(rows, -1),
        one.ancestors.expand(rows, -1, -1),
        one.depth,
        one.width,
        False,
        frame,
        True,
    )


def _given(parents: np.ndarray, device: torch.device) -> Structure:
    """Of parents (B, N) on the host. Plain integers are faster here than small arrays; the bits of
    one are the nodes on a path."""
    nodes = parents.shape[1]
    size, width = (nodes + 7) // 8, 0
    depths: list[list[int]] = []
    bits: list[bytes] = []
    for number, row in enumerate(parents.tolist()):
        depth, paths, children = [0] * nodes, [1 << node for node in range(nodes)], [0] * nodes
        whole = row[0] == -1
        for node in range(1, nodes):
            above = row[node]
            if above == -1:
                continue
            if not 0 <= above < node or (above > 0 and row[above] < 0):
                whole = False
                break
            depth[node] = depth[above] + 1
            paths[node] |= paths[above]
            children[above] += 1
        if not whole:
            faults = structure_faults(parents[number : number + 1])[0]
            raise ValueError(f"malformed tree in row {number}: {described(faults, STRUCTURE)}")
        width = max(width, max(children))
        depths.append(depth)
        bits += [path.to_bytes(size, "little") for path in paths]
    packed = np.frombuffer(b"".join(bits), np.uint8).reshape(len(parents), nodes, size)
    ancestors = np.unpackbits(packed, axis=2, count=nodes, bitorder="little").view(bool)
    return Structure(
        torch.from_numpy(parents).to(device),
        torch.tensor(depths).to(device),
        torch.from_numpy(ancestors).to(device),
        max(map(max, depths), default=0),
        width,
        nodes == 1,
    )


def _ancestors(parents: Tensor, depth: int) -> Tensor:
    """(B, N, N) bool: paths of up to `depth` edges, doubled until they reach the root."""
    nodes = parents.shape[1]
    numbers = torch.arange(nodes, device=parents.device)
    reached = (numbers[:, None] == numbers) | (parents[:, :, None] == numbers)
    steps = 1
    while steps < depth:
        reached = torch.bmm(reached.float(), reached.float()) > 0
        steps *= 2
    return reached
