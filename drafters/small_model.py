"""A small language model drafts chains and trees, with the target's tokenizer or another one.

Leviathan et al. 2211.17192; trees as in SpecInfer 2305.09781, RSD 2402.14160, Sequoia 2402.12374,
SpecHub 2411.05289, DySpec 2410.11744 and EAGLE-2 2406.16858. Its memory follows the accepted path;
drafting takes one forward pass per depth.

Letters: B rows, N nodes, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from specdec import LanguageModel, Sampling, State, TokenTree
from specdec.chance import Draws
from specdec.drafting.by_level import Grown, Score
from specdec.drafting.draft_model import DraftModelDrafter, loaded
from specdec.drafting.guessed import Guesses
from specdec.drafting.shape import STOPPED, VARIANTS, Shape, ShapeArguments
from specdec.drafting.whole import Wholes
from specdec.drafting.written import written
from specdec.errors import switch
from specdec.models import translation
from specdec.models.load import Loadable
from specdec.models.session import TransformersSession
from specdec.models.toy_tokenizers import toy_tokenizers
from specdec.models.translated import Translated, TranslatedSession
from specdec.models.vocabulary import check_same_tokens
from specdec.models.whole import Passes, Piece, padded
from specdec.tree import SiblingLaw

NEW = 2  # tokens that a round brings: the root, and the leaf before it, which was never scored
OTHER_TOKENS: tuple[Mapping[str, Any], ...] = (  # drafts of a model with another tokenizer
    {"depth": 2, "vocabulary": "intersection"},
    {"depth": 2, "branching": [2, 1], "vocabulary": "intersection"},
    {"depth": 2, "vocabulary": "text"},
)


class SmallModel(DraftModelDrafter):
    """Drafts with `model`: a name or path for `specdec.load`, a transformers model, or a
    LanguageModel. `lookup`: a chain's tokens are first looked up in the text and scored in one
    pass, which saves passes without changing the chain (`specdec.drafting.guessed`). `shape`: see
    `specdec.drafting.shape.Shape`; by default a chain of 4.

    vocabulary  same          the draft model has the target's tokens
                intersection  it has others: q has the tokens that both have (2502.05202)
                text          likewise: the text that it writes is tokenized for the target and
                              offered as a chain of up to `depth` tokens (DET)
                auto          same if it is; intersection if half of the smaller vocabulary is
                              shared, or if a tree is asked for; else text
    """

    variants = (*VARIANTS, *STOPPED, {"depth": 2, "lookup": True}, *OTHER_TOKENS)

    def __init__(
        self,
        model: Loadable | LanguageModel = "demo-draft",
        lookup: bool = False,
        vocabulary: str = translation.SAME,
        **shape: Unpack[ShapeArguments],
    ) -> None:
        super().__init__(Shape.asked(shape, depth=4))
        self.lookup = switch("lookup", lookup)
        if self.lookup and not self.shape.chain:
            raise ValueError("lookup is for chains (branching=1); drop it or draft a chain")
        self.vocabulary = translation.check_mode(vocabulary)
        if self.vocabulary == translation.TEXT and not self._may_write:
            raise ValueError(
                "vocabulary='text' drafts a chain of the draft model's most probable tokens, so "
                "branching, nodes, stop and lookup are not for it, and draw is 'auto' or 'topk'; "
                f"got branching={self.shape.branching!r}, draw={self.shape.draw!r}, "
                f"stop={self.shape.stop!r}, lookup={self.lookup}; or take "
                "vocabulary='intersection'"
            )
        self.model = loaded(model)
        self._tokenizers: tuple[Any, Any] | None = None  # in place of the models' own

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "SmallModel":
        made = cls(**{**arguments, "model": draft})
        if made.vocabulary in (translation.INTERSECTION, translation.TEXT):
            made._tokenizers = toy_tokenizers(draft.vocabulary, target.vocabulary)
        return made

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        super().begin(target, rows, sampling)
        self._open(target, self._reading(target), rows)
        self._grown: Grown | None = None
        fixed = self.vocabulary == translation.SAME and not self.lookup
        self._wholes = Wholes(self.shape, self.grower, self.law, sampling) if fixed else None
        self._guesses = Guesses(rows, self.shape.depth) if self.lookup else None

    def _reading(self, target: LanguageModel) -> LanguageModel:
        """The draft model as one that reads the target's tokens. `law` and `vocabulary` are final
        afterwards."""
        self.vocabulary = translation.choose(self.vocabulary, self.model, target, self._may_write)
        if self.vocabulary == translation.SAME:
            check_same_tokens(self.model, target)
            return self.model
        writes = self.vocabulary == translation.TEXT
        self.law = SiblingLaw.DET if writes else self.law
        both = translation.between(self.model, target, self.vocabulary, self._tokenizers)
        return Translated(self.model, both, writes)

    @property
    def grows_whole(self) -> bool:
        return not self.lookup

    @property
    def _may_write(self) -> bool:
        """Whether the shape is that of drafts by text."""
        shape = self.shape
        plain = shape.draw in ("auto", "topk") and shape.stop is None and not self.lookup
        return self.chain and plain

    def enter(self, rows: Sequence[int], state: State) -> None:
        super().enter(rows, state)
        if self._guesses is not None:
            self._guesses.enter(rows, state)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        self._grown = self.aside = None
        state = self._within_context(state)
        if state.deepest < 1:
            return TokenTree.root(state.roots, self.law)
        self._grown = self._as_a_whole(state, chance)
        if self._grown is None:
            logits = self._read_new(state)
            session = self._session
            if isinstance(session, TranslatedSession) and session.model.own:
                return written(logits, session, state, self.shape.depth)
            score: Score = self._score
            if self._guesses is not None:
                score = self._guesses.around(score, state)
            self._grown = self.grow(logits, score, state, chance)
        self.aside = self._grown.inner
        return self._grown.tree

    def observe(self, state: State) -> None:
        """Keep the accepted nodes that are in memory. The leaf of a full path was never scored."""
        grown, last = self._grown, state.last
        self._grown = None
        if grown is None or last.verdict is None:
            return
        path = last.verdict.path
        if last.aside is None:
            scored = np.where(path < grown.scored, path, -1)
        else:  # the path in the model's own numbers
            scored = np.where(path > 0, np.take_along_axis(last.aside, path.clip(0), 1), -1)
        counts = np.where(self._drafted, (scored > 0).sum(1), -1).tolist()
        self._session.keep(scored, counts)
        for row, count in enumerate(counts):
            self._seen[row] += max(count, 0)

    def _score(self, tree: TokenTree, start: int) -> Tensor:
        return self._session.score(tree, start).logits

    def _as_a_whole(self, state: State, chance: Draws) -> Grown | None:
        """The whole draft in one compiled function, where that is possible."""
        session, wholes, counts = self._session, self._wholes, self._new(state)
        if wholes is None or not isinstance(session, TransformersSession) or max(counts) > NEW:
            return None
        whole = wholes.next(state) if session.compile else None
        given = None if whole is None else whole.tensors(state, chance)
        if whole is None or given is None:
            return None

        def make(passes: Passes, inputs: dict[str, Tensor]) -> tuple[list[Tensor], Any]:
            def score(tree: TokenTree, start: int) -> Tensor:
                return passes.score(tree, start, input_ids=tree.tokens[:, start:])

            tokens = inputs["tokens"]
            roots = passes.newest(tokens)[:, 0]
            return whole.grow(passes.read(input_ids=tokens), score, roots, inputs)

        given["tokens"] = padded(state.tokens_from(self._seen, NEW), NEW)
        shape = whole.shape
        found = session.at_once(Piece(whole.key, counts, given, shape.slots, shape.depth, make))
        if found is None:
            return None
        self._seen = [seen + count for seen, count in zip(self._seen, counts, strict=True)]
        return wholes.grown(whole, *found, state)

    def _read_new(self, state: State) -> Tensor:
        """Read what was committed since: the root, and perhaps the leaf before it, which was never
        scored; (B, 1, V) logits after the root."""
        return self._read(state, self._caught_up(state), root=True)
