"""The one read of the device in a round: the verdict, the accepted tokens, and every fault that
only values can show.

Letters: B rows, N nodes, D depth, V vocabulary.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from specdec.interfaces import Drafter, Verifier
from specdec.probs import Laws, picked, top
from specdec.ranks import agreed, check_same_trees
from specdec.state import HostVerdict, State, Verdict
from specdec.tree import STRUCTURE, SiblingLaw, TokenTree, structure_faults


@dataclass(frozen=True, eq=False)
class Outcome:
    """A round on the host."""

    verdict: HostVerdict
    tokens: list[list[int]]  # per row: accepted tokens and the bonus; nothing where not live
    keep: list[int]  # per row: nodes that the memory keeps after the root; -1 where not live
    live: np.ndarray  # (B,) bool: rows that decoded in this round
    parents: np.ndarray  # (B, N)
    counts: dict[str, np.ndarray]  # the verifier's diagnostics, (B,) each
    aside: np.ndarray | None  # (B, n) what the drafter wanted to know
    runners_up: np.ndarray | None  # (B, k) best tokens at the node that the bonus came from
    notes: dict[str, np.ndarray]  # (B, N) each: what a trace wants to know


class Inspector:
    """Reads rounds and raises an error if a drafter, verifier, target or processor breaks its
    contract.

    There is one per run: some promises, such as a fixed width, can only be checked over several
    rounds.
    """

    def __init__(
        self,
        drafter: Drafter,
        verifier: Verifier,
        names: tuple[str, str],
        vocabulary: int,
        ranks: int = 1,
    ) -> None:
        """ranks: processes that hold the target."""
        self.drafter, self.verifier, self._ranks = drafter, verifier, ranks
        self.drafter_name, self.verifier_name = names
        self.vocabulary = vocabulary
        self._widest: dict[int, int] = defaultdict(int)  # most children of a node, by its depth

    # -------------------------------------------------------------------- before anything is read

    def admitted(self, trees: TokenTree, state: State) -> TokenTree:
        """The drafter's trees, with every token inside the vocabulary; one that was outside is
        reported when the round is read. Raises ValueError for faults of shapes and types."""
        self._check_form(trees, state)
        self._tokens = trees.tokens
        return trees.within(self.vocabulary)

    def _check_form(self, trees: TokenTree, state: State) -> None:
        drafter = self.drafter
        if not isinstance(trees, TokenTree):
            raise self._fault(f"returned {type(trees).__name__}, expected a specdec.TokenTree")
        tokens, device = trees.tokens, state.device
        if trees.rows != state.rows:
            raise self._fault(f"returned trees for {trees.rows} rows, there are {state.rows}")
        for what, tensor in (("tokens", tokens), ("parents", trees.parents), ("q", trees.q)):
            if tensor is not None and tensor.device != device:
                raise self._fault(
                    f"returned a tree whose {what} are on {tensor.device}, the run is on {device}"
                )
        if tokens.dtype != torch.long or trees.parents.dtype != torch.long:
            raise self._fault(
                f"returned tokens of {tokens.dtype} and parents of {trees.parents.dtype}, expected "
                "torch.long"
            )
        if trees.num_nodes > drafter.max_nodes:
            raise self._fault(
                f"returned a tree of {trees.num_nodes} nodes but declares "
                f"max_nodes={drafter.max_nodes} (root included)"
            )
        if trees.num_nodes == 1:
            return
        if trees.law is not drafter.law and trees.law not in drafter.other_laws:
            raise self._fault(
                f"declares siblings {drafter.law.name} but returned a {trees.law.name} tree; the "
                "rule of acceptance was chosen for the former"
            )
        if trees.q is not None and trees.q.shape[2] != self.vocabulary:
            raise self._fault(
                f"returned q over {trees.q.shape[2]} tokens, the target's vocabulary has "
                f"{self.vocabulary}"
            )

    # ---------------------------------------------------------------------------------- the read

    def read(self, verdict: Verdict, trees: TokenTree, laws: Laws, state: State) -> Outcome:
        """Raises ValueError if a part broke its contract; the error names the part and the row.
        Where `state.failures` is kept, a row without a law or with a malformed tree has failed, and
        is not live in what is returned."""
        self._check_verdict_form(verdict, state)
        pieces = judged(verdict, trees, laws) | self._given(trees, state)
        if self.drafter.runners_up:
            pieces["runners up"] = runners_up(laws, verdict, self.drafter.runners_up)
        return self._read(fetched(pieces, self._ranks), trees, state)

    def read_judged(self, found: "Packed", trees: TokenTree, state: State) -> Outcome:
        """The same of what was `judged` elsewhere."""
        host = fetch(found, packed(self._given(trees, state)), ranks=self._ranks)
        return self._read(host, trees, state)

    def _given(self, trees: TokenTree, state: State) -> dict[str, Tensor]:
        """What the drafter has brought, so far as only the device knows it."""
        pieces = {"tokens": self._tokens}
        written = state.written
        if written is not None:
            pieces["written"] = written
        if trees.structure.on_host is None:
            pieces |= {"parents": trees.parents, "depths": trees.depths}
        if self.drafter.aside is not None:
            pieces["aside"] = self.drafter.aside
        return pieces

    def _read(self, host: dict[str, np.ndarray], trees: TokenTree, state: State) -> Outcome:
        if self._ranks > 1:
            check_same_trees(self._tokens, torch.from_numpy(host["tokens"]))
        live = [row for row, alive in enumerate(state.on_host.live) if alive]
        shape = trees.structure.on_host
        if shape is not None:
            host |= {"parents": shape.parents, "depths": shape.depths}
        path, accepted, bonus, tokens = (
            host[name].tolist() for name in ("path", "accepted", "bonus", "tokens")
        )
        if "written" in host:
            self._check_state(host["written"].tolist(), state, live)
        self._check_tree(host, tokens, trees, state, live)
        self._check_laws(host["no law"].tolist(), state, live)
        live = [row for row in live if row not in (state.failures or ())]
        self._check_verdict(path, accepted, bonus, host["parents"], live)
        out: list[list[int]] = [[] for _ in path]
        keep = [-1] * len(path)
        for row in live:
            keep[row] = accepted[row]
            out[row] = [*(tokens[row][node] for node in path[row][: accepted[row]]), bonus[row]]
        on_host = HostVerdict(host["path"], host["accepted"], host["bonus"])
        found, noted = named(host, COUNT), named(host, NOTE)
        asked = host.get("aside"), host.get("runners up")
        alive = np.zeros(len(path), dtype=bool)
        alive[live] = True
        return Outcome(on_host, out, keep, alive, host["parents"], found, *asked, noted)

    # --------------------------------------------------------------------------------- the checks

    def _fault(self, what: str) -> ValueError:
        return ValueError(f"drafter {self.drafter_name!r} {what}")

    def _where(self, state: State, row: int) -> str:
        return f"row {row} (request {int(state.request_ids[row])})"

    def _check_state(self, written: list[bool], state: State, live: list[int]) -> None:
        for row in live:
            if written[row]:
                where = self._where(state, row)
                raise self._fault(f"has written into state.tokens of {where}; a state is only read")

    def _check_tree(
        self,
        host: dict[str, np.ndarray],
        tokens: list[list[int]],
        trees: TokenTree,
        state: State,
        live: list[int],
    ) -> None:
        seen = state.on_host
        strange = [row for row in live if tokens[row][0] != seen.texts[row][seen.lengths[row] - 1]]
        if trees.num_nodes == 1 and not strange:
            return
        no_root = np.zeros(len(tokens), dtype=bool)
        no_root[strange] = True
        faults: dict[str, Any] = {}
        faults["column 0 of its tokens is not the root, the last committed token"] = no_root
        if trees.num_nodes > 1:
            drafted = host["parents"] >= 0
            outside = drafted & ((host["tokens"] < 0) | (host["tokens"] >= self.vocabulary))
            faults["a token id is outside the vocabulary"] = outside.any(1)
            if trees.structure.frame is None:  # else its shape was checked when it was made
                shape = structure_faults(host["parents"], host["depths"])
                faults |= {name: shape[:, place] for place, name in enumerate(STRUCTURE)}
            deep = drafted & (host["depths"] >= np.array(seen.room)[:, None])
            faults[
                "it is deeper than room - 1, past the wanted length: clamp its levels to "
                "state.room - 1"
            ] = deep.any(1)
            faults |= self._promises(host, trees, drafted, np.array(seen.live))
            faults |= {name: host[name] for name in Q_FAULTS if name in host}
        bad = np.any(list(faults.values()), axis=0).tolist()
        for row in live:
            if bad[row]:
                named = "; ".join(name for name, found in faults.items() if found[row])
                why = f"malformed tree of drafter {self.drafter_name!r} in "
                state.fail(row, ValueError(f"{why}{self._where(state, row)}: {named}"))

    def _promises(
        self, host: dict[str, np.ndarray], trees: TokenTree, drafted: np.ndarray, live: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What the drafter declared about its trees, and which trees of this round break it."""
        parents, tokens = host["parents"], host["tokens"]
        nodes = parents.shape[1]
        faults = {}
        if self.drafter.chain and not trees.is_chain:
            straight = parents == np.arange(-1, nodes - 1)
            faults["it is no chain, which the drafter declares (chain)"] = (
                drafted & ~straight
            ).any(1)
        if trees.law is SiblingLaw.WOR and not trees.is_chain and nodes > 2:
            same = (parents[:, :, None] == parents[:, None]) & (
                tokens[:, :, None] == tokens[:, None]
            )
            twins = (np.tril(same, -1) & drafted[:, :, None]).any((1, 2))
            faults["two siblings carry one token, which WOR siblings cannot"] = twins
        if self.verifier.needs_fixed_width and self.drafter.fixed_width and "mass" in host:
            faults["its width varies, and the drafter declares it fixed (fixed_width)"] = (
                self._varying(host, trees.law, drafted, live)
            )
        return faults

    def _varying(
        self, host: dict[str, np.ndarray], law: SiblingLaw, drafted: np.ndarray, live: np.ndarray
    ) -> np.ndarray:
        """(B,) bool: a node has fewer children than another of its depth, now or earlier, although
        its q has tokens left. WR siblings may repeat, so their q never runs out of tokens."""
        depths = host["depths"]
        children = np.zeros_like(depths)
        rows = np.broadcast_to(np.arange(len(depths))[:, None], depths.shape)
        np.add.at(children, (rows[drafted], host["parents"][drafted]), 1)
        parents = (children > 0) & live[:, None]
        for depth in np.unique(depths[parents]):
            here = int(children[parents & (depths == depth)].max())
            self._widest[int(depth)] = max(self._widest[int(depth)], here)
        widest = np.vectorize(lambda depth: self._widest[int(depth)], otypes=[np.int64])(depths)
        some_left = np.ones_like(parents) if law is SiblingLaw.WR else host["mass"] < 1 - 1e-4
        varying: np.ndarray = (parents & (children < widest) & some_left).any(1)
        return varying

    def _check_laws(self, no_law: list[bool], state: State, live: list[int]) -> None:
        for row in live:
            if no_law[row]:
                why = (
                    f"the target's logits in {self._where(state, row)}, after position "
                    f"{state.on_host.lengths[row] - 1}, are NaN or leave no token possible (a row "
                    "of -inf); check the model's dtype and the logits processors"
                )
                state.fail(row, ValueError(why))

    def _check_verdict_form(self, verdict: Any, state: State) -> None:
        """Raises ValueError for faults of types, shapes and devices."""
        name = f"verifier {self.verifier_name!r}"
        if not isinstance(verdict, Verdict):
            raise ValueError(
                f"{name} returned {type(verdict).__name__}, expected a specdec.Verdict"
            )
        rows, device = state.rows, state.device
        pieces: list[tuple[str, Any, int]] = [
            ("path", verdict.path, 2),
            ("num_accepted", verdict.num_accepted, 1),
            ("bonus", verdict.bonus, 1),
            *((f"counts[{key!r}]", count, 1) for key, count in verdict.counts.items()),
        ]
        for what, given, axes in pieces:
            form = isinstance(given, Tensor) and given.ndim == axes and len(given) == rows
            if not form or given.device != device:
                came = type(given).__name__
                if isinstance(given, Tensor):
                    came = f"a tensor {tuple(given.shape)} on {given.device}"
                wanted = f"({rows}, depth)" if axes == 2 else f"({rows},)"
                raise ValueError(
                    f"{name} returned {came} as {what}, expected a tensor {wanted} on {device}"
                )
            if given.dtype != torch.long and not what.startswith("counts"):
                raise ValueError(f"{name} returned {what} of {given.dtype}, expected torch.long")

    def _check_verdict(
        self,
        path: list[list[int]],
        accepted: list[int],
        bonus: list[int],
        parents: np.ndarray,
        live: list[int],
    ) -> None:
        for row in live:
            if not _is_path(path[row], accepted[row], parents[row]):
                what = (
                    f"the path {path[row]} with num_accepted={accepted[row]}, which is no path "
                    f"from the root of the tree with parents {parents[row].tolist()}"
                )
            elif not 0 <= bonus[row] < self.vocabulary:
                what = f"the bonus token {bonus[row]}, outside the vocabulary of {self.vocabulary}"
            else:
                continue
            raise ValueError(f"verifier {self.verifier_name!r} returned {what} (row {row})")


def _is_path(path: list[int], accepted: int, parents: np.ndarray) -> bool:
    """Whether the first `accepted` nodes lead down from the root, with nothing after them."""
    above = 0
    for node in path[: max(accepted, 0)]:
        if not 0 < node < len(parents) or parents[node] != above:
            return False
        above = node
    return 0 <= accepted <= len(path) and all(node < 0 for node in path[accepted:])


Q_FAULTS = (
    "q gives a drawn token probability 0 (q must be the very law that was sampled from)",
    "q has NaN, is negative or does not sum to 1 at a node with children",
)


def q_faults(trees: TokenTree) -> dict[str, Tensor]:
    """(B,) bool each, in the order of `Q_FAULTS`; and "mass" (B, N), the mass of q on a node's
    children. Computed on the device, because q stays there."""
    q, drafted = trees.q, trees.parents >= 0
    assert q is not None
    parents = trees.parents.clamp(min=0)
    rows = torch.arange(trees.rows, device=q.device)[:, None]
    drawn = q[rows, parents, trees.tokens.clamp(0, q.shape[-1] - 1)]
    exact = q.dtype in (torch.float32, torch.float64)
    total, lowest = q.sum(-1), q.amin(-1)
    law = ((total - 1).abs() < (1e-4 if exact else 1e-2)) & (lowest >= 0)
    zero = (drafted & ~(drawn > 0) & ~drawn.isnan()).any(1)
    no_law = (drafted & ~law.gather(1, parents)).any(1)
    share = torch.where(drafted, drawn, 0.0).double()
    mass = torch.zeros_like(share).scatter_add_(1, parents, share)
    return {Q_FAULTS[0]: zero, Q_FAULTS[1]: no_law, "mass": mass}


def runners_up(laws: Laws, verdict: Verdict, k: int) -> Tensor:
    """(B, k) the best tokens at the node that each row's bonus token came from."""
    path, last = verdict.path, (verdict.num_accepted - 1).clamp(min=0)
    nodes = torch.zeros_like(verdict.num_accepted)
    if path.shape[1]:
        reached = path.gather(1, last[:, None])[:, 0].clamp(0, laws.scores.shape[1] - 1)
        nodes = torch.where(verdict.num_accepted > 0, reached, nodes)
    return top(picked(laws.scores, laws.rows, nodes), min(k, laws.vocabulary))


COUNT, NOTE = "count ", "note "  # before the names of a verdict's


def judged(verdict: Verdict, trees: TokenTree, laws: Laws) -> dict[str, Tensor]:
    """What the host wants to know of a verdict: it, and the faults of the laws and of q."""
    pieces = {
        "path": verdict.path,
        "accepted": verdict.num_accepted,
        "bonus": verdict.bonus,
        "no law": laws.faulty,
    }
    if trees.q is not None and trees.num_nodes > 1:
        pieces |= q_faults(trees)
    pieces |= {f"{COUNT}{name}": values for name, values in verdict.counts.items()}
    return pieces | {f"{NOTE}{name}": values for name, values in verdict.notes.items()}


def named(host: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """The pieces of one kind, by their own names."""
    return {name.removeprefix(kind): host[name] for name in host if name.startswith(kind)}


class Column(NamedTuple):
    """One piece of what is packed."""

    name: str
    width: int | None  # None: (B,)
    kind: type[float] | type[bool] | type[int]


class Packed(NamedTuple):
    """Tensors side by side, as integers: one copy brings them to the host."""

    whole: Tensor  # (B, n) long
    columns: tuple[Column, ...]


def packed(pieces: dict[str, Tensor]) -> Packed:
    """Of tensors (B,) or (B, n). Floats are kept as the bits of float64."""
    parts, columns = [], []
    for name, piece in pieces.items():
        flat = piece if piece.ndim == 2 else piece[:, None]
        kind: type[float] | type[bool] | type[int] = bool if piece.dtype == torch.bool else int
        if piece.is_floating_point():
            flat, kind = flat.double().view(torch.long), float
        columns.append(Column(name, flat.shape[1] if piece.ndim == 2 else None, kind))
        parts.append(flat)
    return Packed(torch.cat(parts, 1), tuple(columns))


def fetch(*packs: Packed, ranks: int = 1) -> dict[str, np.ndarray]:
    """Everything on the host, in one copy: that of rank 0 where there are several. Floats come as
    float64."""
    joined = packs[0].whole if len(packs) == 1 else torch.cat([each.whole for each in packs], 1)
    whole = (joined if ranks == 1 else agreed(joined)).cpu().numpy()
    found, start = {}, 0
    for name, width, kind in (column for each in packs for column in each.columns):
        values = whole[:, start : start + (1 if width is None else width)]
        start += values.shape[1]
        if kind is float:
            values = np.ascontiguousarray(values).view(np.float64)
        elif kind is bool:
            values = values != 0
        found[name] = values[:, 0] if width is None else values
    return found


def fetched(pieces: dict[str, Tensor], ranks: int = 1) -> dict[str, np.ndarray]:
    """Tensors (B,) or (B, n) on the host, as in `fetch`."""
    return fetch(packed(pieces), ranks=ranks)
