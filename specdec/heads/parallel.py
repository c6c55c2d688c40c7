"""Feature heads that guess several tokens in one pass (P-EAGLE, 2602.01469): behind the pairs of
the text come pairs of a learnt embedding and a learnt feature, one for each token but the first. So
the laws are marginal: that at depth d does not know the tokens drafted before it.

Letters: B rows, T tokens, P mask pairs, n pairs of a pass, D depths, m nodes of a level, V
vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from specdec.chance import Draws
from specdec.drafting.by_level import Grown
from specdec.drafting.marginal import depths_from, laws_at
from specdec.drafting.shape import HeadShapeArguments
from specdec.errors import switch
from specdec.heads.anchors import (
    drawn_anchors,
    for_attention,
    packed_mask,
    packed_numbers,
    packed_positions,
)
from specdec.heads.features import FeatureDrafter, FeatureHead, New
from specdec.heads.head import Guess
from specdec.heads.packing import documents_of, of_pairs
from specdec.interfaces import LendsHead
from specdec.models.support import layer_kinds
from specdec.state import State
from specdec.tree import TokenTree


class ParallelDrafter(FeatureDrafter):
    """A FeatureDrafter that may draft all depths in one pass. parallel None: if the head was
    trained for it."""

    def __init__(
        self,
        heads: str | Path | FeatureHead,
        parallel: bool | None = None,
        **shape: Unpack[HeadShapeArguments],
    ) -> None:
        super().__init__(heads, **shape)
        trained = self.heads.depths
        self.parallel = trained > 1 if parallel is None else switch("parallel", parallel)
        if self.parallel and trained < 2:
            raise ValueError(
                f"parallel=True, but this {self.Kind.kind} head has no mask states: it guesses one "
                "token per pass. Train one that has: python -m experiments.train drafter=peagle "
                "target=..."
            )
        if self.parallel and self.shape.depth > trained:
            raise ValueError(
                f"depth={self.shape.depth}, but the {self.Kind.kind} head guesses {trained} tokens "
                f"in one pass; ask for a depth of at most {trained}"
            )
        self.deepest = trained if self.parallel else None

    @property
    def grows_whole(self) -> bool:
        return not self.parallel

    def enter(self, rows: Sequence[int], state: State) -> None:
        super().enter(rows, state)
        if self.parallel:  # a pass writes accepted tokens, the root and masks
            self._memory.reserve(state.committed.shape[1] + 2 * self.shape.depth)

    def _read(self, new: New) -> Tensor:
        if not self.parallel:
            return super()._read(new)
        counts, tokens, taps = self._newest(new)
        count = torch.tensor(counts, device=tokens.device)[:, None]
        number = torch.arange(tokens.shape[1] + self.shape.depth - 1, device=tokens.device)
        known = number < count
        here = number.clamp(max=tokens.shape[1] - 1)
        embedding, feature = self._heads.masks()
        embeddings, features = self._entering(tokens, taps)
        over = self._memory.scoring(TokenTree.chain(tokens[:, here], None), 0)
        out = self._memory.run(
            self._run,
            over,
            embeddings=torch.where(known[..., None], embeddings[:, here], embedding),
            features=torch.where(known[..., None], features[:, here], feature),
        )
        self._memory.commit(counts)
        places = (count - 1).clamp(min=0) + torch.arange(self.shape.depth, device=tokens.device)
        self._known = self._all_logits(laws_at(out, places))
        return self._known[:, :1]

    def _newest(self, new: New) -> New:
        """The pairs that come before the masks. More than a round brings: it was left out of
        rounds, and reads all but the last one as a prompt is read."""
        counts, tokens, taps = new
        if tokens.shape[1] <= self.shape.depth + 1:
            return new
        older = [max(count - 1, 0) for count in counts]
        over = self._memory.reading(tokens.shape[1], prompt=True, counts=older)
        embeddings, features = self._entering(tokens, taps)
        self._memory.run(self._run, over, embeddings=embeddings, features=features)
        self._memory.commit(older)
        last = torch.tensor(older, device=tokens.device)
        row = torch.arange(len(tokens), device=tokens.device)
        left = [count - past for count, past in zip(counts, older, strict=True)]
        return New(left, tokens[row, last][:, None], taps[row, last][:, None])

    def _score(self, tree: TokenTree, start: int) -> Tensor:
        if not self.parallel:
            return super()._score(tree, start)
        return laws_at(self._known, depths_from(tree, start, self._known))

    def _as_a_whole(self, new: New, state: State, chance: Draws) -> Grown | None:
        return None if self.parallel else super()._as_a_whole(new, state, chance)

    def settings_in_effect(self) -> dict[str, Any]:
        return {**super().settings_in_effect(), "parallel": self.parallel}


def parallel_guesses(
    head: FeatureHead, ids: Tensor, taps: Tensor, target: LendsHead
) -> list[Guess]:
    """For training, of ids (B, T) and the target's states there: the first depth at every pair, the
    others behind some pairs of each window, drawn anew at every call. All are one pass.

    Raises ValueError for windows without room.
    """
    embeddings, features = head.embed(ids, target)[:, 1:], head.fuse(taps)[:, :-1]
    rows, pairs, places = len(ids), ids.shape[1] - 1, head.depths - 1
    if pairs <= places:
        raise ValueError(
            f"windows of {ids.shape[1]} tokens have no room for {head.depths} depths; raise context"
        )
    anchors = drawn_anchors(rows, pairs - places, head.anchors, ids.device)
    masks = (rows, anchors.shape[1] * places, -1)
    embedding, feature = head.masks()
    number, place = of_pairs(documents_of(ids, target.eos_ids if head.apart else ()))
    positions = packed_positions(place, anchors, places)
    number = packed_numbers(number, anchors, places)
    causal = torch.ones(pairs, pairs, dtype=torch.bool, device=ids.device).tril()
    mask = packed_mask(causal, anchors + 1, causal[:places, :places])
    mask = mask & (number[:, :, None] == number[:, None])[:, None]
    kind = layer_kinds(head.decoder.config)[0]
    if kind.size is not None:
        mask = mask & kind.reaches(positions[:, :, None], positions[:, None])[:, None]
    out = head(
        torch.cat([embeddings, embedding.to(embeddings.dtype).expand(masks)], 1),
        torch.cat([features, feature.to(features.dtype).expand(masks)], 1),
        positions,
        for_attention(mask, head.decoder.config),
        None,
        use_cache=False,
    )
    logits = head.logits(out, target)
    behind = logits[:, pairs:].unflatten(1, (-1, places))
    found = [Guess(logits[:, :pairs], 1)]
    found += [Guess(behind[:, :, place], 2 + place, anchors=anchors) for place in range(places)]
    return found
