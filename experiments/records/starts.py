"""How often a round would start at each position of a recorded text, above temperature 0.

A live run's rounds do not start where chance would have it: they start where a draft was rejected,
behind tokens that the drafter did not expect. The recorded text is a sample of the live run's text,
whatever the shape and a lossless rule, so what is wanted is P(a round starts at j | text), by

    s_j = sum over i < j of s_i K_i(j - i - 1),    s_0 = 1,

where K_i(a) is the chance that a round at i accepts the text's next a tokens and adds the one
behind them, given that the text has these tokens:

    K_i(a) = P(a nodes are accepted, with tokens Y_1 .. Y_a, and the bonus is Y_{a+1})
             / p(Y_1 .. Y_{a+1})

The production rule is run on a tree in which Y_1 .. Y_a are put among the siblings. On each level
the rank r of Y is drawn in proportion to its chance there, given the siblings before it: without
replacement w_r = q(Y) / (1 - q(x_1) - .. - q(x_{r-1})). The tree then counts with the weight
prod (sum_r w_r) / p(Y). The siblings of Y on level l, and all below them, are recorded: they are
those of the tree at position i + l. So K_i(a) comes from the records at i .. i + a, and what
follows it in s from later ones: the products are unbiased.

Their variance grows with every factor, so a start is followed through ROUNDS rounds only. Before
those, starts are as likely everywhere.

Letters: T trees (positions), M nodes of the shape, K children, D depth.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from experiments.records.folder import Batch
from experiments.records.laws import Nodes
from experiments.records.rounds import Following, Judge, keys_of
from experiments.records.shapes import WideTrees
from specdec.drafting.rank_tree import RankTree
from specdec.pairing import name_of
from specdec.tree import SiblingLaw

ROUNDS = 3
# Rules that decide about a node without looking below it. Given the text, later tokens then say
# nothing of it: K_i(a) is the chance of a or more accepted tokens less that of a + 1 or more, which
# needs no law of the bonus. On chains that varies less; on trees the difference varies more.
TOP_DOWN = ("token", "rrs_wor", "rrs_wr", "kseq", "hub", "is2", "ot")
REPEATS = 8  # draws of ranks and coins for each K_i(a)
FORCED = 1  # the first purpose of those coins; 0 is that of the rounds themselves


class Conditional:
    """Trees of one frame, without replacement (WOR), independent (WR) or HUB, at every position of
    the texts of a batch."""

    def __init__(
        self, batch: Batch, trees: WideTrees, frame: RankTree, law: SiblingLaw, judge: Judge
    ) -> None:
        self.batch, self.trees, self.frame, self.law, self.judge = batch, trees, frame, law, judge
        self.first = {
            int(text): int(n)
            for text, n in zip(*np.unique(trees.text, return_index=True), strict=True)
        }
        lengths = [len(text.tokens) for text in batch.texts]
        self.left = np.array([lengths[text] for text in trees.text]) - trees.position
        flat = [
            batch.texts[text].tokens[at]
            for text, at in zip(trees.text, trees.position, strict=True)
        ]
        self.following = np.array(flat, dtype=np.int64)  # (T,) the text's next token
        column = trees.columns
        self.top_down = frame.is_chain and name_of(judge.rule) in TOP_DOWN
        self.p, self.q = column["p"][:, 0].astype(float), column["q"][:, 0].astype(float)

    @cached_property
    def ranks(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the text's next token at each position: (T, K) the weights w_r of its ranks, and (T,)
        the rank that it has in the recorded tree, K where it has none."""
        trees = self.trees
        children = trees.children[:, 0].astype(np.int64)
        there = children >= 0
        tokens = np.take_along_axis(trees.columns["token"], children.clip(0), 1)
        q = np.where(there, np.take_along_axis(trees.columns["q"], children.clip(0), 1), 0)
        same = there & (tokens == self.following[:, None])
        most = children.shape[1]
        mine = np.where(same.any(1), same.argmax(1), most)
        before = np.cumsum(q, 1) - q
        if self.law is SiblingLaw.WR:
            weights = np.where(there, self.q[:, None], 0.0)
        else:
            fresh = np.arange(most) <= mine[:, None]
            left = np.maximum(1 - before, 1e-6)
            weights = np.where(there & fresh, self.q[:, None] / left, 0.0).clip(0, 1)
        if self.law is SiblingLaw.HUB:
            last = there.sum(1)[:, None] - 1
            fixed = np.arange(most) < last
            weights = np.where(fixed, same, np.where(np.arange(most) == last, weights, 0.0))
        return weights, mine

    def kernel(self) -> np.ndarray:
        """(T, D + 1) K_i(a)."""
        depth, found = self.frame.depth, np.zeros((len(self.trees), self.frame.depth + 1))
        for accepted in range(depth + 1):
            rows = np.flatnonzero(self.left > accepted)
            for purpose in range(FORCED, FORCED + REPEATS) if len(rows) else ():
                drawn = self._accepting(rows, accepted, purpose * (depth + 1) + accepted)
                found[rows, accepted] += drawn / REPEATS
        if self.top_down:
            found[:, 0] = 1.0  # so far the chance that a or more are accepted
            found[:, :-1] -= found[:, 1:]
        whole = self.left > depth + 1
        if whole.any():  # what a row adds up to is 1 in the mean; a scale that all share is none
            found /= max(float(found[whole].sum(1).mean()), 0.1)
        return found

    def _accepting(self, rows: np.ndarray, accepted: int, purpose: int) -> np.ndarray:
        """K_i(a) of the trees in `rows`, from one draw of ranks and coins."""
        weights, mine = self.ranks
        frame = self.frame
        count, nodes = len(rows), 1 + frame.nodes
        source = np.zeros((count, nodes), dtype=np.int64)  # the recorded tree of each node
        number = np.full((count, nodes), -1, dtype=np.int64)  # and its number there
        level = np.full((count, nodes), -1, dtype=np.int64)  # on the text's path: its depth
        source[:, 0], number[:, 0], level[:, 0] = rows, 0, 0
        weight = np.ones(count)
        rank_of: dict[int, np.ndarray] = {}  # frame node on some row's path -> rank of Y below it
        end = np.zeros(count, dtype=np.int64)
        widths = np.bincount(frame.parents, minlength=nodes)
        key = keys_of(self.batch, self.trees)[rows]
        for node, (above, rank) in enumerate(zip(frame.parents, frame.ranks, strict=True), 1):
            on_path = (level[:, above] >= 0) & (level[:, above] < accepted)
            if above not in rank_of:
                at = source[:, above]
                share = weights[at, : widths[above]]
                total = share.sum(1)
                uniform = _uniform(key, self.judge.seed, purpose, above)
                drawn = (np.cumsum(share, 1) <= uniform[:, None] * total[:, None]).sum(1)
                rank_of[above] = drawn.clip(max=widths[above] - 1)
                factor = np.where(self.p[at] > 0, total / np.maximum(self.p[at], 1e-30), 0.0)
                weight = np.where(on_path, weight * factor, weight)
            forced = on_path & (rank == rank_of[above])
            at = source[:, above]
            # Siblings of Y behind it: the recorded ones, without Y.
            place = np.full(count, rank)
            if self.law is SiblingLaw.WOR:
                behind = on_path & (rank > rank_of[above])
                place = np.where(behind, rank - (mine[at] > rank - 1), rank)
            known = self.trees.children.shape[2]
            inner = self.trees.children[at, number[:, above].clip(0), place.clip(0, known - 1)]
            there = (number[:, above] >= 0) & (place < known) & (inner >= 0)
            source[:, node] = np.where(forced, at + 1, at)
            number[:, node] = np.where(forced, 0, np.where(there, inner, -1))
            level[:, node] = np.where(forced, level[:, above] + 1, -1)
            end = np.where(forced & (level[:, node] == accepted), node, end)
        reached = level[np.arange(count), end] == accepted
        weight = np.where(reached, weight, 0.0)
        nodes_given = self._nodes(source, number, level)
        following = Following(torch.from_numpy(end), self._place(nodes_given, source, end))
        found = self.judge.paths(
            self.batch, nodes_given, (-1, *frame.parents), key, purpose, following
        )
        if self.top_down:
            return weight * ((found.path == end[:, None]).any(1) | (end == 0))
        last = np.where(found.path >= 0, found.path, 0).max(1, initial=0)
        # Behind a leaf the bonus is drawn from p itself.
        leaf = ~(nodes_given.parents == following.node[:, None]).any(1).numpy()
        return weight * (last == end) * np.where(leaf, 1.0, found.odds)

    def _nodes(self, source: np.ndarray, number: np.ndarray, level: np.ndarray) -> Nodes:
        """The nodes of trees in which the text's tokens were put. Such a node has its token from
        the position before, and its law from the root of the tree at its own."""
        column, there = self.trees.columns, number >= 0

        def of(name: str) -> np.ndarray:
            return np.asarray(column[name][source.clip(0, len(column[name]) - 1), number.clip(0)])

        forced, before = level > 0, (source - 1).clip(0)
        token = np.where(forced, self.following[before], of("token"))
        p = np.where(forced, self.p[before], of("p")).astype(np.float32)
        q = np.where(forced, self.q[before], of("q")).astype(np.float32)
        parents = np.where(there, np.array((-1, *self.frame.parents)), -1)
        law = np.where(there, of("law"), -1).astype(np.int64)
        numbers = (torch.from_numpy(each) for each in (parents, there, token, p, q, law))
        return Nodes(*numbers)

    def _place(self, nodes: Nodes, source: np.ndarray, end: np.ndarray) -> torch.Tensor:
        """(T,) where the text's next token is in the alphabet of the node at which it goes on."""
        count = len(end)
        at = source[np.arange(count), end]
        token = torch.from_numpy(self.following[at])[:, None]
        law = nodes.law[torch.arange(count), torch.from_numpy(end)]
        known = self.batch.laws["law_tokens"].shape[1]
        listed = torch.from_numpy(self.batch.laws["law_tokens"][law.clamp(min=0).numpy()])
        same = (listed == token) & (law >= 0)[:, None]
        place = torch.where(same.any(1), same.int().argmax(1), -1)
        # A child beyond the recorded tokens has a place of its own, by its rank.
        child = (nodes.parents == torch.from_numpy(end)[:, None]) & (nodes.token == token)
        siblings = nodes.parents == torch.from_numpy(end)[:, None]
        rank = (siblings.cumsum(1) - 1).gather(1, child.int().argmax(1)[:, None])[:, 0]
        return torch.where((place < 0) & child.any(1), known + rank, place)

    def starts(self, usual: float) -> np.ndarray:
        """(T,) s_j. usual: of positions of which nothing is known."""
        kernel = self.kernel()
        s = np.full(len(self.trees), usual)
        begins = np.array(sorted(self.first.values()))
        s[begins] = 1.0
        for _ in range(ROUNDS):
            after = np.zeros_like(s)
            for accepted in range(kernel.shape[1]):
                lands = np.flatnonzero(self.left > accepted + 1)
                np.add.at(after, lands + accepted + 1, s[lands] * kernel[lands, accepted])
            after[begins] = 1.0
            s = after
        return s


def _uniform(keys: np.ndarray, seed: int, purpose: int, node: int) -> np.ndarray:
    """(T,) a number in [0, 1) for each key, the same at every call."""
    one = np.random.SeedSequence((seed, purpose, node)).generate_state(1, np.uint64)[0]
    mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + one
    for shift, odd in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(odd)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def following_only(trees: WideTrees, texts: Sequence[Sequence[int]]) -> WideTrees:
    """The same trees with p certain of the recorded text: a node has p = 1 where it carries the
    token that the text goes on with behind its parent, 0 elsewhere."""
    parent, depth = trees.columns["parent"], trees.columns["depth"].astype(np.int64)
    longest = max(map(len, texts), default=0) + int(depth.max(initial=0)) + 1
    tokens = np.full((len(texts), longest), -1, dtype=np.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    at = trees.position[:, None] + (depth - 1).clip(0)
    wanted = tokens[trees.text[:, None], at.clip(max=longest - 1)]
    p = ((parent >= 0) & (trees.columns["token"] == wanted)).astype(np.float32)
    return replace(trees, columns={**trees.columns, "p": p})
