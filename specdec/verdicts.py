"""A round's verdict as one compiled function: the target's laws, the rule, and the checks of values
that the host reads. For chains of full length; other trees are judged as they are.

The rule is the same Python: it is run once on tensors that record what is done to them, as a whole
draft is (`specdec.models.whole`).

Letters: B rows, N nodes, V vocabulary, n places.
"""

import threading
import time
from collections.abc import Hashable
from typing import NamedTuple, cast
from warnings import warn

from torch import Tensor

from specdec.chance import Draws, KeyedDraws, Sites, numbers_by_node
from specdec.drafting.whole import Outline
from specdec.interfaces import CompiledPass, Verifier
from specdec.models import compiled
from specdec.models.whole import Function
from specdec.outcome import Column, Packed, judged, packed
from specdec.probs import Laws
from specdec.sampling import Sampling
from specdec.state import State
from specdec.tree import SiblingLaw, TokenTree


class Made(NamedTuple):
    """A compiled verdict."""

    function: Function
    purposes: tuple[str, ...]  # of the rule's draws
    columns: tuple[Column, ...]  # of what it returns


PLAIN = (bool, int, float, str, type(None))  # settings of a rule that say all that it does

_made: dict[Hashable, Made | None] = {}  # for all runs to come; None: it cannot be compiled
_lock = threading.RLock()


class WholeVerdicts:
    """Of one run, under one rule and sampling (`specdec.interfaces.OpenedCompiled`)."""

    nbytes, forward_seconds = 0, 0.0  # it keeps nothing, and is no pass of a model

    def __init__(self, rule: Verifier, sampling: Sampling, nodes: int) -> None:
        self.rule, self.sampling, self.nodes = rule, sampling, nodes
        self.compiled: list[CompiledPass] = []
        self._about = type(rule), tuple(sorted(vars(rule).items())), repr(sampling)
        plain = all(isinstance(value, PLAIN) for value in vars(rule).values())
        self._possible = plain and not sampling.penalties
        self._rounds = 0

    def close(self) -> None:
        """There is nothing to free."""

    def reserve(self, slots: int) -> None:
        """There is no memory."""

    def __call__(
        self, logits: Tensor, trees: TokenTree, state: State, chance: Draws
    ) -> Packed | None:
        """What `specdec.outcome.judged` says of the rule's verdict on trees of `nodes` nodes. None
        in a round that is judged as it is: the first one, where a rule that breaks its contract is
        found out, is so too."""
        self._rounds += 1
        fits = trees.is_chain and trees.structure.full and trees.num_nodes == self.nodes
        if not (fits and self._possible) or self._rounds == 1:
            return None
        if state.grammars is not None or type(chance) is not KeyedDraws:
            return None
        given = {"logits": logits, "tokens": trees.tokens, "live": state.live}
        if trees.q is not None:
            given["q"] = trees.q
        given = {name: value.contiguous() for name, value in given.items()}
        key = self._key(given, trees.law)
        if key not in _made:
            with _lock:
                if key not in _made:
                    _made[key] = self._make(given, trees, chance)
        made = _made[key]
        if made is None:
            return None
        arguments = self._arguments(given, made.purposes, chance)
        return Packed(made.function(arguments), made.columns)

    def _key(self, given: dict[str, Tensor], law: SiblingLaw) -> Hashable:
        """Whatever the function depends on besides the values of its tensors."""
        shapes = tuple((name, each.shape, each.dtype) for name, each in given.items())
        return self._about, law, shapes, given["logits"].device

    def _arguments(
        self, given: dict[str, Tensor], purposes: tuple[str, ...], chance: KeyedDraws
    ) -> dict[str, Tensor]:
        if not purposes:
            return given
        return {**given, "u": numbers_by_node(chance, self.nodes, purposes)}

    def _make(self, given: dict[str, Tensor], trees: TokenTree, chance: KeyedDraws) -> Made | None:
        """None where the rule looks at values, or draws what is not known before."""
        structure, law = trees.structure, trees.law
        found: list[tuple[Column, ...]] = []
        outline = self._outline(given)
        asked = Asked(chance)
        self.rule.verify(trees, Laws(given["logits"], trees, outline), asked)
        if asked.purposes is None:
            return None
        purposes = tuple(asked.purposes)

        def whole(inputs: dict[str, Tensor]) -> Tensor:
            state = self._outline(inputs)
            trees = TokenTree(inputs["tokens"], structure, law, inputs.get("q"))
            laws = Laws(inputs["logits"], trees, state)
            draws = ByNode(dict(zip(purposes, inputs["u"], strict=True)) if purposes else {})
            out = packed(judged(self.rule.verify(trees, laws, draws), trees, laws))
            found[:] = [out.columns]
            return out.whole

        arguments = self._arguments(given, purposes, chance)
        made = CompiledPass("verdict", self.nodes, trees.rows, 0, 0.0)
        wrapper = {"cpp_wrapper": True} if given["logits"].device.type == "cpu" else {}
        began = time.perf_counter()
        try:
            function = compiled.first_call(
                made, lambda: compiled.recorded(whole, (arguments,), wrapper), (arguments,)
            )
        except Exception as error:  # whatever recording, or a compiler, raises
            why = compiled.reason(error)
            name = type(self.rule).__name__
            warn(
                f"verdicts of {name} cannot be compiled ({why}); they run as they are", stacklevel=2
            )
            return None
        self.compiled.append(made._replace(seconds=time.perf_counter() - began))
        return Made(function, purposes, found[0])

    def _outline(self, given: dict[str, Tensor]) -> State:
        """What of a state a rule and its laws look at."""
        roots, live = given["tokens"][:, 0], given["live"]
        outline = Outline(roots, roots, live, self.sampling, self.nodes - 1, -1, False)
        return cast(State, outline)


class Asked(KeyedDraws):
    """Notes what a rule draws for: `purposes`, None if it draws elsewhere than once at a node."""

    def __init__(self, chance: KeyedDraws) -> None:
        super().__init__(chance.seed, chance.request_ids, chance.lengths)
        self.purposes: list[str] | None = []

    def uniform(self, at: Sites, k: int, purpose: str) -> Tensor:
        if k > 1 or bool((at.ranks != 0).any()):
            self.purposes = None
        if self.purposes is not None and purpose not in self.purposes:
            self.purposes.append(purpose)
        return super().uniform(at, k, purpose)


class ByNode(KeyedDraws):
    """The same draws, given the numbers u (B, N) of each purpose at every node."""

    def __init__(self, u: dict[str, Tensor]) -> None:
        self.u = u

    def uniform(self, at: Sites, k: int, purpose: str) -> Tensor:
        return self.u[purpose][at.rows, at.nodes][:, None]
