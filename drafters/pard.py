"""PARD: a small language model that guesses several tokens in one pass (An et al. 2504.18583).

Behind the committed text it reads mask tokens, one for each token but the first: its law after the
root is that of the first drafted token, its law after the i-th mask that of the one i places later.
The model was trained for this. The laws are marginal, as a block head's: chains, ranked trees and
trees with sampled siblings are grown from one pass. The masks are scratch, and the memory keeps
committed tokens only.

    text  root  MASK  MASK        one causal pass
           |     |     |
           q1    q2    q3         laws at depths 1, 2, 3

Letters: B rows, n tokens of a pass, D guessed tokens, m nodes of a level, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor

from specdec import LanguageModel, Sampling, State, TokenTree
from specdec.chance import Draws
from specdec.drafting.draft_model import DraftModelDrafter, loaded
from specdec.drafting.marginal import depths_from, laws_at
from specdec.drafting.shape import STOPPED, Shape, ShapeArguments
from specdec.errors import integer
from specdec.heads.block_drafter import SAMPLED
from specdec.models.load import Loadable
from specdec.models.vocabulary import check_same_tokens

TRAINED = "python -m experiments.train drafter=pard target=..."


class Pard(DraftModelDrafter):
    """model: a name or path for `specdec.load`, a transformers model, or a LanguageModel, with the
    target's tokenizer. mask_token: the id that stands for a token not known yet, or a list of one
    id for each place behind the root; None: `pard_token` of the model's config. `shape`: see
    `specdec.drafting.shape.Shape`; by default a chain of 8, all of one pass.

    Raises ValueError without a model or a mask token, and for ids that the model does not have.
    """

    variants: ClassVar[Sequence[Mapping[str, Any]]] = (
        *SAMPLED,
        *STOPPED,
        {"depth": 3, "draw": "wor", "mask_token": [1, 0]},
    )

    def __init__(
        self,
        model: Loadable | LanguageModel | None = None,
        mask_token: int | Sequence[int] | None = None,
        **shape: Unpack[ShapeArguments],
    ) -> None:
        super().__init__(Shape.asked(shape, depth=8))
        if model is None:
            raise ValueError(
                "pard drafts with a model that was trained to read mask tokens, and none is "
                f"bundled; give model=FOLDER, as `{TRAINED}` writes it"
            )
        self.model = loaded(model)
        self.masks = self._masks(mask_token)
        if len(self.masks) > 1:
            self.deepest = len(self.masks) + 1

    def _masks(self, given: Any) -> list[int]:
        """One token for all places behind the root, or one for each of them."""
        model, places = self.model, max(self.shape.depth - 1, 1)
        if given is None:
            given = getattr(getattr(model, "config", None), "pard_token", None)
        if given is None:
            raise ValueError(
                f"the config of the draft model {model.name} has no pard_token, the token that "
                f"stands for what is not known yet; give mask_token=ID, or train the model for it: "
                f"`{TRAINED}`"
            )
        several = not isinstance(given, str) and isinstance(given, Sequence)
        ids = list(given) if several else [given]
        if several and len(ids) < places:
            raise ValueError(
                f"mask_token lists {len(ids)} tokens, and depth={self.shape.depth} needs {places}, "
                "one for each token but the first"
            )
        return [integer("mask_token", each, 0, model.vocabulary - 1) for each in ids]

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "Pard":
        if arguments.get("mask_token") is None:
            arguments["mask_token"] = draft.vocabulary - 1
        return cls(**{**arguments, "model": draft})

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        super().begin(target, rows, sampling)
        check_same_tokens(self.model, target)
        self._open(target, self.model, rows)

    @property
    def _scratch(self) -> int:
        return 2 * self.shape.depth  # accepted tokens, the root, masks

    def propose(self, state: State, chance: Draws) -> TokenTree:
        state = self._within_context(state)
        if state.deepest < 1:
            return TokenTree.root(state.roots, self.law)
        self._known = self._guess(state)
        return self.grow(self._known[:, :1], self._score, state, chance).tree

    def _guess(self, state: State) -> Tensor:
        """(B, D, V) the laws of the coming tokens. On the way, read what was committed since."""
        counts = self._caught_up(state)
        places = min(self.shape.depth, state.deepest) - 1
        masks = self.masks * places if len(self.masks) == 1 else self.masks[:places]
        tokens, widest = state.tokens_from(self._seen, max(counts)), max(counts)
        count = torch.tensor(counts, device=state.device)[:, None]
        number = torch.arange(widest + len(masks), device=state.device)
        # Each row: its new tokens, the masks, padding, which nobody looks at.
        padding = torch.zeros(widest, dtype=torch.long, device=state.device)
        filled = torch.cat([torch.tensor(masks, device=state.device, dtype=torch.long), padding])
        behind = filled[(number - count).clamp(min=0)]
        known = torch.cat([tokens, tokens.new_zeros(state.rows, len(masks))], 1)
        row = TokenTree.chain(torch.where(number < count, known, behind), None)
        logits = self._session.score(row, 0).logits
        # Committed: the new tokens, of which the first is the root of this chain.
        path = np.tile(np.arange(1, max(widest, 2)), (state.rows, 1))
        self._session.keep(path, [each - 1 for each in counts])
        self._seen = [seen + each for seen, each in zip(self._seen, counts, strict=True)]
        return laws_at(
            logits, (count - 1).clamp(min=0) + torch.arange(places + 1, device=state.device)
        )

    def _score(self, tree: TokenTree, start: int) -> Tensor:
        return laws_at(self._known, depths_from(tree, start, self._known))
