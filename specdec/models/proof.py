"""Testing a model: whether it scores trees as it reads plain text, and which of its parts run.

Every check runs a pass over a small tree and compares the results. This refuses even models that
nobody has thought of.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.errors import Unsupported, some
from specdec.interfaces import KV, Compile, Part
from specdec.models import attention
from specdec.models.layers import lower_layers, num_layers, upper_layers, watched
from specdec.models.masks import masks
from specdec.models.memory import LayerShape, ShapeProbe
from specdec.models.quantized import is_quantized, numbers
from specdec.models.session import Runnable, TransformersSession
from specdec.models.support import LayerKind
from specdec.tree import TokenTree

FOREIGN = (  # what a model's own code may raise
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    KeyError,
)
FORK = [-1, 0, 0, 1, 2]  # the parents of a tree with two branches


class Tried(Runnable, Protocol):
    """What is tried out; `specdec.TransformersLM` is."""

    model: PreTrainedModel
    name: str
    config: Any
    vocabulary: int

    compile: Compile

    @property
    def kv(self) -> KV: ...

    def open(
        self, rows: int, slots: int, compile: Compile = None, kv: KV | None = None
    ) -> TransformersSession: ...

    def head(self, states: Tensor) -> Tensor: ...


def _uncompiled(lm: Tried, rows: int, slots: int) -> TransformersSession:
    """And with numbers as the model computes them. A class of one's own may have an `open` that
    knows nothing of either."""
    plain = not lm.compile and lm.kv == KV()
    return lm.open(rows, slots) if plain else lm.open(rows, slots, False, KV())


@contextmanager
def _told(lm: Tried) -> Iterator[None]:
    """Turns errors of a model's own code into a refusal of the model."""
    try:
        yield
    except Unsupported:
        raise
    except FOREIGN as error:
        raise Unsupported(
            f"{lm.name} ({type(lm.model).__name__}) cannot score a token tree: its forward fails "
            f"with a 4-D attention mask, position ids and a cache of ours ({type(error).__name__}: "
            f"{error})"
        ) from error


@torch.inference_mode()
def probed(lm: Tried, kinds: list[LayerKind], implementation: str) -> tuple[int, list[LayerShape]]:
    """Vocabulary and layer shapes, read off one pass over one token."""
    probe = ShapeProbe()
    ids = torch.zeros(1, 1, dtype=torch.long, device=lm.device)
    one = torch.ones_like(ids, dtype=torch.bool)[None]
    with _told(lm):
        mask = masks(kinds, one, ids, 0, [0], 1, lm.dtype, False)
        out = lm.runner(
            input_ids=ids,
            position_ids=ids,
            attention_mask=mask,
            past_key_values=probe,
            use_cache=True,
        )
        layers = lm.config.num_hidden_layers
        if sorted(probe.seen) != list(range(layers)):
            raise Unsupported(
                f"{lm.name}: {layers - len(probe.seen)} of {layers} layers keep no keys and values "
                "(recurrent, or sharing another layer's cache); a token tree cannot be scored "
                "this way"
            )
        return out.logits.shape[-1], [probe.seen[layer] for layer in range(layers)]


@torch.inference_mode()
def prove(lm: Tried) -> None:
    """Score a tree with two branches and compare with the model's own logits for each branch,
    without our cache, mask and positions. A model that ignores masks or positions, or that looks
    ahead, cannot pass."""
    ids, tree = _forked(lm, 1)
    with _told(lm), _uncompiled(lm, 1, 8) as session:
        session.read(ids[:, :3], [3])
        in_tree = session.score(tree).logits[0, 3:]
        plain = attention.own(lm.model)
        current = lm.model.config.get_text_config()._attn_implementation
        own = lm.model if current == plain else attention.rewired(lm.model, plain)
        branches = [
            torch.cat([ids[:, :4], tree.tokens[:, tree.path(0, leaf)]], 1) for leaf in (3, 4)
        ]
        alone = own(input_ids=torch.cat(branches), use_cache=False).logits
        _check_numbers(lm, torch.cat([alone.flatten(), in_tree.flatten()]))
        ahead, allowed = difference(alone[0, :4], alone[1, :4], _rounding(lm))
        if not ahead <= allowed:
            raise Unsupported(
                f"{lm.name} ({type(lm.model).__name__}) is not causal: its logits change by "
                f"{ahead:.3g} with the tokens that follow. An encoder (BERT and its like) decodes "
                "only with is_decoder=True in its config"
            )
        off, allowed = difference(in_tree, alone[:, -1], _rounding(lm))
        if not off <= allowed:
            raise Unsupported(
                f"{lm.name}: logits at the nodes of a token tree differ from plain decoding by "
                f"{off:.3g} (allowed {allowed:.3g}); {type(lm.model).__name__} does not follow a "
                "4-D attention mask with position ids"
            )


@torch.inference_mode()
def prove_head(lm: Tried) -> None:
    """Raise ValueError where logits are not the LM head's product with the last hidden state."""
    ids = torch.arange(min(4, lm.vocabulary), device=lm.device)[None]
    out = lm.runner(input_ids=ids, use_cache=False, output_hidden_states=True)
    states = lm.head(out.hidden_states[-1])
    off, allowed = difference(states, out.logits, _rounding(lm))
    if not off <= allowed / (10 if _rounding(lm) == torch.float32 else 1):
        raise ValueError(
            f"{lm.name}: the logits of {type(lm.model).__name__} are not its LM head's product "
            f"with its last hidden state (they differ by {off:.3g}), so a head that shares it "
            "would draft from another law"
        )


@torch.inference_mode()
def prove_part(lm: Tried, part: Part, which: tuple[frozenset[int], frozenset[int]]) -> None:
    """Raise ValueError where a model does not run without some of its sublayers."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=lm.device)
    try:
        with _uncompiled(lm, 1, 2) as session:
            part.score(session, TokenTree.chain(ids, None))
    except FOREIGN as error:
        no_attention, no_mlp = map(sorted, which)
        raise ValueError(
            f"{lm.name} ({type(lm.model).__name__}) does not run without these sublayers "
            f"(attention of {no_attention}, MLP of {no_mlp}; {type(error).__name__}: {error}); "
            "leave out others, or draft with another model"
        ) from error


@torch.inference_mode()
def proven_upper(lm: Tried, layer: int) -> PreTrainedModel:
    """The layers from `layer` on, after a small tree has gone through both parts and the whole, and
    states fed to the model were seen to reach its layers unaltered."""
    layers = num_layers(lm.model)
    if not 1 <= layer < layers:
        raise ValueError(
            f"{lm.name} has {layers} layers, so a pass can resume at layer 1 to {layers - 1}; got "
            f"{layer}"
        )
    nothing, below = lower_layers(lm.runner, 0), lower_layers(lm.runner, layer)
    above = upper_layers(lm.runner, layer)
    ids, tree = _forked(lm, 2)  # one row hides layers that return tuples
    try:
        with ExitStack() as stack:
            one, other, third = (stack.enter_context(_uncompiled(lm, 2, 8)) for _ in range(3))
            for session in (one, other, third):
                session.read(ids[:, :3], [3, 3])
            whole = one.score(tree).logits
            first = other.score_part(below, tree, 0, {})
            if first.logits.shape != whole.shape:
                raise IndexError(
                    f"the lower part gives logits {tuple(first.logits.shape)}, the whole "
                    f"{tuple(whole.shape)}"
                )
            third.resume_at(nothing, tree, first.states, None)
            with watched() as stream:
                third.score(tree)
            unaltered = torch.equal(stream[-1], first.states)
            other.resume_at(above, tree, first.states, None)
            resumed = other.score(tree).logits
    except FOREIGN as error:
        raise ValueError(
            f"{lm.name} cannot resume at layer {layer}: {type(lm.model).__name__} does not run in "
            f"two parts ({type(error).__name__}: {error}); use layer_skip, which starts from "
            "tokens"
        ) from error
    off, allowed = difference(resumed, whole, _rounding(lm))
    if not (unaltered and off <= allowed):
        raise ValueError(
            f"{lm.name} cannot resume at layer {layer}: from saved states its logits differ by "
            f"{off:.3g} (allowed {allowed:.3g}). {type(lm.model).__name__} alters inputs_embeds on "
            "the way in (it adds positions, scales or normalises them); use layer_skip, which "
            "starts from tokens"
        )
    return above


def _forked(lm: Tried, rows: int) -> tuple[Tensor, TokenTree]:
    """Random tokens (rows, 8), and the last five of each row as a tree with two branches."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(lm.vocabulary, (rows, 8), generator=random).to(lm.device)
    return ids, TokenTree(ids[:, 3:], [FORK] * rows)


def difference(ours: Tensor, plain: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """The largest difference of logits, and how much of it rounding explains. (Some float64 models
    rotate positions in float32.) Logits of -inf, as of masked padding ids, must be at the same
    places in both."""
    finite = plain.isfinite()
    if not torch.equal(finite, ours.isfinite()):
        return float("inf"), 0.0
    if not finite.any():
        return 0.0, 0.0
    off = float((ours - plain)[finite].abs().max())
    scale = 1 + float(plain[finite].abs().max())
    return off, scale * {torch.float64: 1e-6, torch.float32: 1e-3}.get(dtype, 0.1)


def _rounding(lm: Tried) -> torch.dtype:
    """The dtype whose rounding explains a difference. Activations of 8 bits round as coarsely as
    bfloat16; that each token is on its own, `quantized.refuse_unfit` has tried."""
    return torch.bfloat16 if is_quantized(lm.model) else lm.dtype


def _check_numbers(lm: Tried, logits: Tensor) -> None:
    """Raise Unsupported for a model whose logits are NaN, naming the weights that are."""
    if not logits.isnan().any():
        return
    known = {name: numbers(weight) for name, weight in lm.model.named_parameters()}
    wrong = [name for name, one in known.items() if one is not None and not one.isfinite().all()]
    reason = (
        f"weights that are NaN or infinite: {some(wrong)}"
        if wrong
        else (
            f"its weights are finite, so a layer overflows {str(lm.dtype).removeprefix('torch.')}; "
            "load it in a wider dtype"
        )
    )
    raise Unsupported(f"{lm.name}: its logits are NaN; {reason}")
