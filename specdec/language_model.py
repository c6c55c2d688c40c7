"""A stock transformers causal LM as "score this tree": one forward pass; masks, positions, hidden-state taps.

It knows trees and caches; it has never heard of drafters, verifiers or sampling. The same class serves as target and inside
a draft model. The user's model is never changed: the attention that the pass uses is chosen for its duration only.

Letters: B rows, N nodes, n nodes of this pass, V vocabulary, d hidden size.
"""

import inspect
import time
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec import attention
from specdec.cache import LayerShape, ShapeProbe
from specdec.interfaces import Scores, Tap
from specdec.part import Exit, final_norm, lower, num_layers, upper, without
from specdec.placement import Masks, Placement
from specdec.support import Unsupported, layer_kinds, refuse_unsupported, usable_context
from specdec.tree import TokenTree

FOREIGN = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    KeyError,
)  # what a model's own code may raise


class TransformersLM:
    """`LanguageModel` over any transformers decoder that takes a 4-D mask and position ids.

    Raises ValueError at construction for models that cannot score a tree: ALiBi, recurrent or encoder-decoder models, and
    any whose logits at a small tree differ from plain decoding when tried.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, name: str = "model"
    ) -> None:
        refuse_unsupported(model, name)
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.config = model.config.get_text_config()
        self.context = usable_context(self.config)
        self.place = Placement(layer_kinds(self.config), attention.choose(model), name)
        factor, divisor = (getattr(self.config, key, None) or 1.0 for key in ("logit_scale", "logits_scaling"))
        self._logit_scale = float(factor / divisor)  # Cohere's factor, Granite's divisor
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.device, self.dtype = model.device, model.dtype  # asked often, and slow to ask a model for
        self.calls, self.forward_seconds = 0, 0.0  # forward passes since `open`, and the time inside them
        self.extra_layers = 0
        self._uppers: dict[int, PreTrainedModel] = {}  # the layers from E on, once proven
        self._run_without: set[tuple[frozenset[int], frozenset[int]]] = set()  # sublayers without which it has run
        self._head_is_checked = False
        try:
            self.vocabulary, self._shapes = self._probe()
            self._prove()
        except Unsupported:
            raise
        except FOREIGN as error:
            raise Unsupported(
                f"{name} ({type(model).__name__}) cannot score a token tree: its forward fails with a 4-D attention mask, position "
                f"ids and a cache of ours ({type(error).__name__}: {error})"
            ) from error

    # ------------------------------------------------------------------------------------------------------ properties

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def cache_bytes(self) -> int:
        return self.place.cache.nbytes if self.place.cache is not None else 0

    @property
    def eos_ids(self) -> frozenset[int]:
        """End-of-sequence ids of the generation config: none, one or several."""
        generation = getattr(self.model, "generation_config", None)
        found = getattr(generation, "eos_token_id", None)
        found = self.config.eos_token_id if found is None else found
        return frozenset([] if found is None else [found] if isinstance(found, int) else found)

    # -------------------------------------------------------------------------------------------------------- contract

    def open(self, rows: int, slots: int) -> None:
        self.device, self.dtype = self.model.device, self.model.dtype
        self.place.open(self._shapes, rows, slots, self.dtype, self.device)
        self.calls, self.forward_seconds = 0, 0.0

    def read(self, tokens: Tensor, counts: Tensor, taps: tuple[Tap, ...] = ()) -> Scores:
        cache, valid = self.place.opened(), counts.tolist()
        rows, length = tokens.shape
        positions, masks = self._placed(*self.place.reading(rows, length))
        last = sorted({max(count - 1, 0) for count in valid})
        wanted = None if length == 1 else torch.tensor(last, device=tokens.device)
        logits, hidden = self._forward(tokens, positions, masks, taps, wanted)
        if len(last) > 1:
            column = torch.tensor([last.index(max(count - 1, 0)) for count in valid], device=logits.device)
            logits = logits[torch.arange(rows, device=logits.device), column][:, None]
        cache.commit(valid)
        return Scores(logits, hidden)

    def score(self, tree: TokenTree, start: int = 0, taps: tuple[Tap, ...] = ()) -> Scores:
        positions, masks = self._placed(*self.place.scoring(tree, start))
        if tree.resume is not None and start == 0 and not taps:  # taps may lie below the layer: then from the start
            return Scores(self._resume(*tree.resume, positions, masks), None)
        logits, hidden = self._forward(tree.tokens[:, start:], positions, masks, taps)
        return Scores(logits, hidden)

    def _placed(self, positions: Tensor, masks: Masks) -> tuple[Tensor, Masks]:
        """Padding may lie past the context, where a model has no positions, or turns all of them by other angles."""
        return (positions if self.place.opened().end <= self.context else positions.clamp(max=self.context - 1)), masks

    def keep(self, path: Tensor, counts: Tensor) -> None:
        self.place.opened().keep(path, counts.tolist())

    # ---------------------------------------------------------------------------------------- what it lends to its heads

    def embed(self, tokens: Tensor) -> Tensor:
        """The target's own embedding of tokens (..., d)."""
        return self.model.get_input_embeddings()(tokens)

    def final_norm(self, stream: Tensor) -> Tensor:
        """The tap "head" of a stream (..., d) that leaves a layer."""
        return final_norm(self.model)(stream)

    @property
    def head_weight(self) -> Tensor:
        """(V, d) of the LM head."""
        return self.model.get_output_embeddings().weight

    def head(self, states: Tensor) -> Tensor:
        """Logits (..., V) of states (..., d) as the tap "head" gives them. `check_head` tells whether they are the model's."""
        logits = self.model.get_output_embeddings()(states)
        if self._logit_scale != 1:
            logits = logits * self._logit_scale
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @torch.inference_mode()
    def check_head(self) -> None:
        """Raise ValueError where the model does more between the tap "head" and its logits than `head` does."""
        if self._head_is_checked:
            return
        ids = torch.arange(min(4, self.vocabulary), device=self.device)[None]
        out = self.model(input_ids=ids, use_cache=False, output_hidden_states=True)
        difference = float((self.head(out.hidden_states[-1]) - out.logits).abs().max())
        scale = 1 + float(out.logits.abs().max())
        if not difference <= scale * (1e-4 if self.dtype in (torch.float32, torch.float64) else 0.05):
            raise ValueError(
                f"{self.name}: the logits of {type(self.model).__name__} are not its LM head's product with its last hidden "
                f"state (they differ by {difference:.3g}), so a head that shares it would draft from another law"
            )
        self._head_is_checked = True

    def tapped(self, hidden_states: tuple[Tensor, ...], taps: tuple[Tap, ...]) -> Tensor:
        """(B, N, T, d) of what transformers hands out: the stream entering each layer, then the LM head's input.

        Raises ValueError for layers that the model does not have.
        """
        layers = len(hidden_states) - 1
        lacking = [str(tap) for tap in taps if tap != "head" and not (isinstance(tap, int) and 0 <= tap < layers)]
        if lacking:
            raise ValueError(
                f"the states entering layers {', '.join(lacking)} of {self.name} were asked for, which has {layers} layers (0 to "
                f'{layers - 1}, then "head"); heads read the layers of the target that they were trained for'
            )
        shapes = {tuple(hidden_states[-1 if tap == "head" else tap].shape) for tap in taps}  # type: ignore[index]
        if any(len(shape) != 3 or shape[2] != self.hidden_size for shape in shapes):
            raise ValueError(
                f"{self.name} ({type(self.model).__name__}) has hidden states of shape {sorted(shapes)}, expected (B, T, "
                f"{self.hidden_size}); heads cannot read them"
            )
        return torch.stack([hidden_states[-1 if tap == "head" else tap] for tap in taps], 2)  # type: ignore[index]

    # -------------------------------------------------------------------------------------------------- parts that draft

    @property
    def layers(self) -> int:
        return num_layers(self.model)

    def without(self, attention: Collection[int], mlp: Collection[int]) -> "Part":
        """The model without some sublayers. Raises ValueError for sets that leave nothing or name what is not there, and for
        models that cannot run without them."""
        part, in_use = Part(self, without(self.model, attention, mlp)), self.place.cache
        which = (frozenset(attention), frozenset(mlp))
        if which in self._run_without:
            return part
        ids = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        try:
            with torch.inference_mode():
                self.place.open(self._shapes, 1, 2, self.dtype, self.device)
                part.score(TokenTree.chain(ids, None))
        except FOREIGN as error:
            raise ValueError(
                f"{self.name} ({type(self.model).__name__}) does not run without these sublayers (attention of {sorted(attention)}, "
                f"MLP of {sorted(mlp)}; {type(error).__name__}: {error}); leave out others, or draft with another model"
            ) from error
        finally:
            self.place.cache = in_use
        self._run_without.add(which)
        return part

    def lower(self, layer: int, adapter: Module | None = None) -> "Part":
        """The first `layer` layers, perhaps an adapter, the final norm and the head. Trees that carry its states are scored from
        `layer` on.

        Raises ValueError for models whose upper layers, fed with saved states, give other logits than the whole.
        """
        if layer not in self._uppers:
            self._uppers[layer] = self._proven_upper(layer)
        return Part(self, *lower(self.model, layer, adapter))

    # ------------------------------------------------------------------------------------------------------ the forward

    def _forward(
        self, tokens: Tensor, positions: Tensor, masks: Any, taps: tuple[Tap, ...], logits_to_keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        options: dict[str, Any] = {"output_hidden_states": True} if taps else {}
        if logits_to_keep is not None and self._takes_logits_to_keep:
            options["logits_to_keep"] = logits_to_keep
        began = time.perf_counter()
        out = self.run(self.model, positions, masks, input_ids=tokens, **options)
        self.forward_seconds += time.perf_counter() - began
        self.calls += 1
        logits = out.logits
        if logits_to_keep is not None and not self._takes_logits_to_keep:
            logits = logits[:, logits_to_keep]
        if not taps:
            return logits, None
        return logits, self.tapped(out.hidden_states, taps)

    def _resume(self, layer: int, states: Tensor, positions: Tensor, masks: Any) -> Tensor:
        """Logits (B, N, V) from the stream (B, N, d) that enters `layer`; the layers below have written their slots."""
        began = time.perf_counter()
        logits = self.run(self._uppers[layer], positions, masks, inputs_embeds=states).logits
        self.forward_seconds += time.perf_counter() - began
        self.calls += 1
        return logits

    def run(self, model: PreTrainedModel, positions: Tensor, masks: Any, **options: Any) -> Any:
        """A pass of this model, or of a part of it, over the cache."""
        with attention.using(self.config, self.place.implementation):
            return model(
                position_ids=positions,
                attention_mask=masks,
                past_key_values=self.place.cache,
                use_cache=True,
                **options,
            )

    # --------------------------------------------------------------------------------------------------- trying it out

    @torch.inference_mode()
    def _probe(self) -> tuple[int, list[LayerShape]]:
        """Vocabulary and layer shapes, read off one pass over one token."""
        probe = ShapeProbe()
        ids = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self.place.device, self.place.dtype = self.device, self.dtype
        mask = self.place.masks(torch.ones_like(ids, dtype=torch.bool)[None], ids, 0, [0], 1, False)
        with attention.using(self.config, self.place.implementation):
            logits = self.model(
                input_ids=ids, position_ids=ids, attention_mask=mask, past_key_values=probe, use_cache=True
            ).logits
        layers = self.config.num_hidden_layers
        if sorted(probe.seen) != list(range(layers)):
            raise Unsupported(
                f"{self.name}: {layers - len(probe.seen)} of {layers} layers keep no keys and values (recurrent, or "
                "sharing another layer's cache); a token tree cannot be scored this way"
            )
        return logits.shape[-1], [probe.seen[layer] for layer in range(layers)]

    @torch.inference_mode()
    def _prove(self) -> None:
        """Score a tree with two branches and compare with what the model itself, without cache, mask and positions of ours, says
        of each branch: what a model that ignores masks or positions, or that looks ahead, cannot pass."""
        random = torch.Generator().manual_seed(0)
        ids = torch.randint(self.vocabulary, (1, 8), generator=random).to(self.device)
        parents = torch.tensor([[-1, 0, 0, 1, 2]], device=self.device)
        self.open(1, 8)
        self.read(ids[:, :3], torch.tensor([3]))
        tree = TokenTree(ids[:, 3:], parents)
        in_tree = self.score(tree).logits[0, 3:]
        self.place.cache = None
        with attention.using(self.config, attention.plain(self.model)):
            branches = [torch.cat([ids[:, :4], tree.tokens[:, tree.path(0, leaf)]], 1) for leaf in (3, 4)]
            alone = self.model(input_ids=torch.cat(branches), use_cache=False).logits
        ahead, allowed = self._difference(alone[0, :4], alone[1, :4])
        if not ahead <= allowed:
            raise Unsupported(
                f"{self.name} ({type(self.model).__name__}) is not causal: its logits change by {ahead:.3g} with the tokens that "
                "follow. An encoder (BERT and its like) decodes only with is_decoder=True in its config"
            )
        difference, allowed = self._difference(in_tree, alone[:, -1])
        if not difference <= allowed:
            raise Unsupported(
                f"{self.name}: logits at the nodes of a token tree differ from plain decoding by {difference:.3g} "
                f"(allowed {allowed:.3g}); {type(self.model).__name__} does not follow a 4-D attention mask with position ids"
            )

    @torch.inference_mode()
    def _proven_upper(self, layer: int) -> PreTrainedModel:
        """The layers from `layer` on, after a small tree has gone through both parts and the whole, and states fed to the
        model were seen to reach its layers unaltered."""
        layers = num_layers(self.model)
        if not 1 <= layer < layers:
            raise ValueError(
                f"{self.name} has {layers} layers, so a pass can resume at layer 1 to {layers - 1}; got {layer}"
            )
        nothing, enter = lower(self.model, 0)
        part = Part(self, *lower(self.model, layer))
        above, in_use, counted = upper(self.model, layer), self.place.cache, (self.calls, self.forward_seconds)
        random = torch.Generator().manual_seed(0)
        ids = torch.randint(self.vocabulary, (2, 8), generator=random).to(
            self.device
        )  # one row hides layers that return tuples
        tree = TokenTree(ids[:, 3:], torch.tensor([[-1, 0, 0, 1, 2]] * 2, device=self.device))
        try:
            self.place.open(self._shapes, 2, 8, self.dtype, self.device)
            self.read(ids[:, :3], torch.tensor([3, 3]))
            whole = self.score(tree).logits
            for block in self.place.opened().blocks:
                block[:, :, :, 3:] = 0  # what the whole has written at the tree's slots
            first = part.score(tree)
            if first.shape != whole.shape:
                raise IndexError(f"the lower part gives logits {tuple(first.shape)}, the whole {tuple(whole.shape)}")
            positions, masks = self.place.scoring(tree, 0)
            self.run(nothing, positions, masks, inputs_embeds=part.states)
            resumed = self.run(above, positions, masks, inputs_embeds=part.states).logits
        except FOREIGN as error:
            raise ValueError(
                f"{self.name} cannot resume at layer {layer}: {type(self.model).__name__} does not run in two parts "
                f"({type(error).__name__}: {error}); use layer_skip, which starts from tokens"
            ) from error
        finally:
            self.place.cache, (self.calls, self.forward_seconds) = in_use, counted
        difference, allowed = self._difference(resumed, whole)
        if not (torch.equal(enter.states, part.states) and difference <= allowed):
            raise ValueError(
                f"{self.name} cannot resume at layer {layer}: from saved states its logits differ by {difference:.3g} (allowed "
                f"{allowed:.3g}). {type(self.model).__name__} alters inputs_embeds on the way in (it adds positions, scales or "
                "normalises them); use layer_skip, which starts from tokens"
            )
        return above

    def _difference(self, ours: Tensor, plain: Tensor) -> tuple[float, float]:
        """The largest difference of logits, and what rounding explains. (Some models of float64 turn positions in float32.)"""
        difference, scale = float((ours - plain).abs().max()), 1 + float(plain.abs().max())
        return difference, scale * {torch.float64: 1e-6, torch.float32: 1e-3}.get(self.dtype, 0.1)


class Part:
    """Some of a model's layers as a drafter over the model's own cache (`specdec.part`). What it writes there is scratch until
    all layers have run."""

    def __init__(self, whole: TransformersLM, model: PreTrainedModel, leave: Exit | None = None) -> None:
        self.whole, self.model, self.leave = whole, model, leave
        self.forward_seconds = 0.0

    def score(self, tree: TokenTree, start: int = 0, last_only: bool = False) -> Tensor:
        """Logits (B, n, V) of nodes >= start. `last_only`: nobody reads them, so the model may leave out all but the last."""
        began = time.perf_counter()
        positions, masks = self.whole.place.scoring(tree, start)
        options: dict[str, Any] = {"logits_to_keep": 1} if last_only and self.whole._takes_logits_to_keep else {}
        logits = self.whole.run(self.model, positions, masks, input_ids=tree.tokens[:, start:], **options).logits
        self.forward_seconds += time.perf_counter() - began
        return logits

    @property
    def states(self) -> Tensor:
        """(B, n, d) the stream that left the lower layers in the latest pass."""
        assert self.leave is not None
        return self.leave.states

    def rearrange(self, source: Tensor) -> None:
        """Node i of the tree being scored becomes what node source[:, i] (B, N) was."""
        self.whole.place.opened().rearrange(source)
