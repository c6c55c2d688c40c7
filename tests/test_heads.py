"""Drafters with trained heads, here with random ones: they read the right states at the right
places, whatever was accepted.

What a drafter keeps from round to round is compared with what the whole committed text gives when
it is read afresh.
"""

import copy
import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import specdec
from drafters.eagle import Eagle
from drafters.eagle3 import Eagle3, Eagle3Head, default_taps
from drafters.medusa import MedusaHeads, Stacked
from drafters.mtp import Mtp
from experiments.certificates import tiny
from experiments.certificates.suite import make
from specdec import Drafter, Sampling, TokenTree
from specdec.drafting.rank_tree import RankTree
from specdec.heads.decoder_layer import layer_config
from specdec.heads.features import FeatureDrafter, FeatureHead
from specdec.heads.files import fill
from specdec.heads.head import Head, newest_states, random_head, with_states
from specdec.models.language_model import TransformersLM
from specdec.models.memory import Memory
from specdec.models.support import layer_kinds
from specdec.models.table import TableModel
from specdec.plugins import build
from specdec.state import Last, OnHost, State
from tests import models
from tests.models import CHAINS, CONTEXT, HEADS, VOCABULARY, lm, prompts, shared

EXACT = 1e-9
FEATURES: dict[str, type[FeatureDrafter]] = {"eagle": Eagle, "eagle3": Eagle3, "mtp": Mtp}
SAMPLED = {
    "hydra_heads": {"depth": 3, "draw": "wor"},
    "eagle": {"draw": "wor"},
    "eagle3": {"draw": "wor"},
    "dflash": {"draw": "wor"},
    "dspark": {"depth": 2, "branching": [2, 1], "draw": "wor"},
    "mtp": {"draw": "wor"},
}
TREE = {  # nine nodes or fewer
    "medusa": {"branching": [3, 2]},
    "hydra_heads": {"depth": 3, "draw": "ranked", "nodes": 9},
    "eagle": {"depth": 3, "draw": "ranked", "nodes": 9},
    "eagle3": {
        "depth": 3,
        "draw": "static",
        "tree": [[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0]],
    },
    "dflash": {"depth": 3, "draw": "ranked", "nodes": 9},
    "dspark": {"depth": 3, "branching": [3, 1, 1], "draw": "topk"},
    "mtp": {"depth": 3, "draw": "ranked", "nodes": 9},
}
BLOCKS = ("dflash", "dspark")


def drafter(
    kind: str, target: TransformersLM, settings: dict[str, Any], spread: float = 0.2
) -> Drafter:
    return build("drafter", {"name": kind, "heads": models.head(kind, target, spread), **settings})


def tokens_of(out: specdec.Output) -> list[list[int]]:
    return [row.tolist() for row in out.tokens]


# ------------------------------------------------------------------------------ features and tokens


@torch.no_grad()
def reread(head: FeatureHead, target: TransformersLM, text: Tensor) -> tuple[Tensor, Tensor]:
    """Features (T, d) and logits (T, V') of every pair of a text (T + 1,), without cache and in one
    pass; the target's states come from transformers itself."""
    hidden = target.model(
        input_ids=text[None, :-1], output_hidden_states=True, use_cache=False
    ).hidden_states
    taps = torch.stack([hidden[-1 if tap == "head" else tap] for tap in head.taps], 2)
    positions = torch.arange(len(text) - 1)[None]
    back = positions[0][:, None] - positions
    window = layer_kinds(head.decoder.config)[0].size
    visible = (back >= 0) & (back < (window or len(text)))
    mask = torch.zeros(visible.shape, dtype=target.dtype).masked_fill(~visible, -torch.inf)[
        None, None
    ]
    features = head(
        target.embed(text[None, 1:]), head.fuse(taps), positions, mask, None, use_cache=False
    )
    return features[0], head.logits(features, target)[0]


def watched(kind: str, head: Head, **settings: Any) -> Any:
    """The drafter, which also keeps what it says after every round's root: (row's text, logits
    (V,)) in `seen`."""

    class Watched(FEATURES[kind]):  # type: ignore[misc]
        seen: list[tuple[Tensor, Tensor]]
        said: list[Tensor] | None = None  # the roots' features of every round

        def propose(self, state: State, chance: Any) -> TokenTree:
            self.now = state
            return super().propose(state, chance)

        def _read(self, new: Any) -> Tensor:
            logits, state = super()._read(new), self.now
            if self.said is not None:
                self.said.append(self._features)
            for row, (length, live) in enumerate(
                zip(state.on_host.lengths, state.on_host.live, strict=True)
            ):
                if live and length > 1:
                    self.seen.append((state.tokens[row, :length].clone(), logits[row, 0].clone()))
            return logits

    made = Watched(head, **{"depth": 3, "draw": "wor", **settings})
    made.seen = []
    return made


def kinds_of(out: specdec.Output) -> set[str]:
    """Which kinds of acceptance there were."""
    found = set()
    for step in out.steps:
        for parents, accepted, live in zip(step.parents, step.num_accepted, step.live, strict=True):
            depths = [0]
            for parent in parents[1:]:
                depths.append(depths[parent] + 1 if parent >= 0 else 0)
            if live and max(depths):
                found.add("none" if not accepted else "all" if accepted == max(depths) else "part")
    return found


@pytest.mark.parametrize("settings", [{}, {"branching": [2, 2, 1]}], ids=["chain", "tree"])
@pytest.mark.parametrize("name", ["llama_gqa", "mistral_window", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("kind", FEATURES)
def test_a_feature_goes_with_the_token_after_it_whatever_was_accepted(kind, name, settings):
    """Ragged prompts, one of a single token."""
    # Experts are grouped by a kernel that knows no float64.
    dtype, exact = (
        (torch.float32, 2e-4) if name in ("mixtral", "qwen3_moe") else (torch.float64, EXACT)
    )
    target = lm(name, dtype)
    made = watched(kind, models.head(kind, target), **settings)
    temperature = 1.0 if kind == "mtp" else 3.0  # whose laws, of normed states, are flatter
    out = specdec.generate(
        target, prompts(9, 1, 6), drafter=made, temperature=temperature, max_new_tokens=40
    )
    assert kinds_of(out) == {"none", "part", "all"}
    assert len(made.seen) > 3 * 40 / 4 - 3  # at least one per row and round
    for text, logits in made.seen:
        whole = torch.full_like(logits, -torch.inf)
        whole[made.heads.token_ids if made.heads.token_ids is not None else slice(None)] = reread(
            made.heads, target, text
        )[1][-1]
        torch.testing.assert_close(logits, whole, rtol=exact, atol=exact)
    assert (
        max(
            float((ours - other).nan_to_num().abs().max())
            for (_, ours), (_, other) in itertools.pairwise(made.seen)
        )
        > 0.1
    )


@pytest.mark.parametrize("kind", FEATURES)
def test_the_memory_is_in_step_after_200_rounds(kind, monkeypatch):
    """float32. Keys, values and the root's feature are those of the whole text read afresh."""
    target = TransformersLM(models.long_llama())
    memories, features = [], []
    once = Memory.close

    def remember(self: Memory) -> None:
        if len(self.layout.shapes) == 1:  # the head's
            memories.append((list(self.lengths), [block.clone() for block in self.blocks]))
        once(self)

    monkeypatch.setattr(Memory, "close", remember)
    made = watched(kind, models.head(kind, target), depth=2)
    made.said = features
    out = specdec.generate(target, prompts(7, 3), drafter=made, temperature=3.0, max_new_tokens=700)
    assert len(out.steps) >= 200
    assert kinds_of(out) == {"none", "part", "all"}
    text, logits = made.seen[-1]
    lengths, blocks = memories[-1]
    row = next(row for row, length in enumerate(lengths) if length == len(text) - 1)
    keys, values = (block[0, row, :, : lengths[row]] for block in blocks)
    torch.testing.assert_close(
        features[-1][row, 0], reread(made.heads, target, text)[0][-1], rtol=0, atol=1e-4
    )

    again = watched(kind, made.heads, depth=2)
    specdec.generate(target, [text.tolist()], drafter=again, temperature=3.0, max_new_tokens=2)
    fresh = [block[0, 0, :, : len(text) - 1] for block in memories[-1][1]]
    torch.testing.assert_close((keys, values), tuple(fresh), rtol=0, atol=1e-4)
    torch.testing.assert_close(logits, again.seen[0][1], rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------- training and drafting


def standing(made: Any, target: TransformersLM, text: Tensor) -> State:
    """As in the first round after the prefill of a text (T,), which the drafter has begun and
    entered."""
    made.begin(target, 1, Sampling(0.0))
    memory = target.open(1, 2 * len(text))
    states = memory.read(text[None, :-1], [len(text) - 1], taps=made.taps).taps
    host = OnHost([len(text)], [True], [20], [True], [text.tolist()])
    ids = torch.zeros(1, dtype=torch.long)
    state = State(host, text[None], ids, Sampling(0.0), Last(None, None, [0], None, states), memory)
    made.enter([0], state)
    return replace(state, last=state.last._replace(taps=states[:, -1:]))


@torch.no_grad()
def lessons(head: Head, target: TransformersLM, text: Tensor) -> list[Any]:
    hidden = target.model(
        input_ids=text[None], output_hidden_states=True, use_cache=False
    ).hidden_states
    taps = torch.stack([hidden[-1 if tap == "head" else tap] for tap in head.taps], 2)
    return head.guesses(text[None], taps, target)


@pytest.mark.parametrize("at", [0, 4, 9])
@pytest.mark.parametrize("name", ["llama_gqa", "mistral_window", "gemma2"])
@pytest.mark.parametrize("kind", FEATURES)
def test_three_steps_of_training_are_three_levels_of_drafting(kind, name, at):
    """At index t: pairs read up to t, then the chain of the text's next tokens scored level by
    level."""
    target, text = lm(name, torch.float64), torch.tensor(prompts(16)[0])
    made: Any = drafter(kind, target, CHAINS[kind])
    made.heads.steps = 3
    guesses = lessons(made.heads, target, text)
    assert [guess.offset for guess in guesses] == [1, 2, 3]
    with torch.inference_mode():
        state = standing(made, target, text[: at + 2])
        drafted = [made._read(made._new(state))]
        tree = TokenTree.root(state.roots)
        for step in (1, 2):
            tree = tree.grow(text[None, at + 1 + step, None], torch.tensor([[step - 1]]))
            drafted.append(made._score(tree, step))
    for guess, logits in zip(guesses, drafted, strict=True):
        ours = logits[0, 0] if made.heads.token_ids is None else logits[0, 0, made.heads.token_ids]
        exact = 1e-4 if name == "gemma2" else EXACT  # eager attention takes its softmax in float32
        torch.testing.assert_close(ours, guess.logits[0, at], rtol=exact, atol=exact)


@pytest.mark.parametrize("kind", HEADS)
def test_what_is_drafted_is_what_training_says(kind):
    """The drafted chain is the argmaxes that training sees on the text which it makes."""
    target, text = lm("llama_gqa", torch.float64), torch.tensor(prompts(9)[0])
    made: Any = drafter(kind, target, CHAINS[kind])
    if isinstance(made.heads, FeatureHead):
        made.heads.steps = 3
    with torch.inference_mode():
        state = standing(made, target, text)
        tree = made.propose(state, specdec.Keyed(0).round(state))
        assert tree.parents.tolist() == [[-1, 0, 1, 2]]
        # One token more than was drafted, since each law stands before its token.
        guesses = lessons(made.heads, target, torch.cat([text, tree.tokens[0, 1:], text[:1]]))
    roots = [
        torch.arange(guess.logits.shape[1]) if guess.anchors is None else guess.anchors[0]
        for guess in guesses
    ]
    at = [position + guess.offset for position, guess in zip(roots, guesses, strict=True)]
    said = [
        guess.logits[0, where == len(text) - 1 + depth].argmax()
        for depth, (guess, where) in enumerate(zip(guesses, at, strict=True))
    ]
    if made.heads.token_ids is not None:
        said = [made.heads.token_ids[best] for best in said]
    assert [int(token) for token in said] == tree.tokens[0, 1:].tolist()


# --------------------------------------------------------------------------------- rows and targets


@pytest.mark.parametrize("temperature", [0.0, 2.0])
@pytest.mark.parametrize("kind", HEADS)
def test_float64_tokens_do_not_depend_on_neighbours(kind, temperature):
    target, rows = lm("llama_gqa", torch.float64), prompts(9, 1, 6)

    def run(settings: dict[str, Any], *requests: int) -> list[list[int]]:
        out = specdec.generate(
            target,
            [rows[request] for request in requests],
            drafter=drafter(kind, target, settings),
            temperature=temperature,
            max_new_tokens=16,
            request_ids=requests,
            seed=6,
        )
        return tokens_of(out)

    for settings in (TREE[kind], SAMPLED.get(kind, CHAINS[kind])):
        together = run(settings, 0, 1, 2)
        assert run(settings, 1, 0) == [together[1], together[0]]
        assert run(settings, 2) == [together[2]]


SERVED = (
    "llama_gqa",
    "mistral_window",
    "mixtral",
    "qwen3_moe",
    "qwen3",
    "gemma2",
    "gemma3",
    "deepseek_v3",
)
UNSERVED = {  # (kind, family): why
    ("eagle", "gpt2"): "no `layers` and `norm`",
    ("eagle", "opt"): "no `layers` and `norm`",
    ("eagle", "gpt_neox"): "no `layers` and `norm`",
    ("eagle", "phi"): "no `layers` and `norm`",
    ("eagle3", "gpt2"): "no `layers` and `norm`",
    ("dflash", "gpt2"): "no `layers` and `norm`",
    ("dspark", "gpt2"): "no `layers` and `norm`",
    ("mtp", "gpt2"): "no `layers` and `norm`",
    ("eagle3", "deepseek_v3"): "no q_proj",
}


@pytest.mark.parametrize("name", [*SERVED, "gpt2"])
@pytest.mark.parametrize("kind", HEADS)
def test_greedy_tokens_are_those_of_plain_decoding(kind, name):
    if (kind, name) in UNSERVED:
        pytest.skip("refused, see below")
    target, rows = lm(name), prompts(9, 1, 6)
    plain = specdec.generate(target, rows, drafter="none", max_new_tokens=16)
    out = specdec.generate(
        target, rows, drafter=drafter(kind, target, TREE[kind]), max_new_tokens=16
    )
    assert tokens_of(out) == tokens_of(plain)


@pytest.mark.parametrize(("kind", "name"), UNSERVED)
def test_families_that_cannot_serve_are_refused_with_the_reason(kind, name):
    with pytest.raises(ValueError, match=UNSERVED[kind, name]):
        HEADS[kind](lm(name))


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_of_another_target_is_refused(kind):
    other = TransformersLM(models.long_llama(hidden_size=48))
    made = drafter(kind, other, CHAINS[kind])
    with pytest.raises(ValueError, match=r"hidden size of 48, the target has 32"):
        specdec.generate(lm("llama_gqa"), prompts(5), drafter=made, max_new_tokens=4)


def test_a_heads_layer_is_of_the_last_layers_kind():
    target = copy.copy(lm("gemma3"))
    target.config = copy.deepcopy(target.config)
    target.config.layer_types = ["sliding_attention", "full_attention"]
    assert layer_config(target)["layer_types"] == ["full_attention"]


def test_published_weights_meet_the_embedding_first():
    """EAGLE's fc is over (embedding, feature)."""
    head: Any = models.head("eagle", lm("llama_gqa"))
    size = head.hidden_size
    embeddings, features = torch.randn(2, 1, 3, size).unbind(0)
    with torch.no_grad():
        head.fc.weight.copy_(torch.cat([torch.eye(size), torch.zeros(size, size)], 1))
        head.fc.bias.zero_()
        torch.testing.assert_close(head.enter(embeddings, features), embeddings)


def test_usual_taps_are_low_middle_and_high():
    """As EAGLE-3's authors have them: the states that enter layers 2, L / 2 and L - 3."""

    class Deep(TableModel):
        layers = 32

    assert default_taps(Deep({(): [1, 1]})) == (2, 16, 29)
    assert default_taps(TableModel({(): [1, 1]})) == (1, 3, 5)


def test_the_newest_state_is_that_behind_what_was_accepted():
    taps = torch.arange(2.0 * 4 * 2 * 3).view(2, 4, 2, 3)
    host = OnHost([9, 1], [True, True], [5, 5], [False, True], [[0] * 9, [0]])
    last = Last(None, None, [2, 0], None, taps)
    tokens = torch.zeros(2, 9, dtype=torch.long)
    state = State(host, tokens, torch.arange(2), Sampling(), last)
    assert torch.equal(newest_states(state), torch.stack([taps[0, 2, -1], taps[1, 0, -1]]))
    # there is none before the root of a text of one token
    assert with_states(state).on_host.live == [True, False]


def test_weights_that_are_left_over_are_named():
    weight = torch.zeros(2)
    with pytest.raises(ValueError, match="not expected: b"):
        fill({"a": weight}, {"a": weight, "b": weight}, "a head", "a folder", {})


def test_layers_that_the_target_lacks_are_named():
    """What leaves the last layer enters none: transformers hands it out with the final norm
    only."""
    session = lm("llama_gqa").open(1, 8)
    for tap in (3, -1, "tail"):
        with (
            torch.inference_mode(),
            pytest.raises(ValueError, match=rf"entering layers {tap} of llama_gqa.* has 3 layers"),
        ):
            session.read(torch.tensor([[1, 2]]), [2], taps=(1, tap))
    target = lm("llama_gqa")
    made = Eagle3(Eagle3Head.for_target(target, taps=(1, 5, 9)))
    with pytest.raises(ValueError, match=r"layers \[1, 5, 9\], the target has 3"):
        specdec.generate(target, prompts(5), drafter=made, max_new_tokens=4)


# --------------------------------------------------------------------------------------------- room


class Recorded(Drafter):
    """A drafter whose trees are kept with the room that their rows had."""

    def __init__(self, inner: Drafter) -> None:
        self.given, self.seen = inner, []

    def begin(self, target: Any, rows: int, sampling: Sampling) -> None:
        inner = self.inner = copy.copy(self.given)
        inner.begin(target, rows, sampling)
        for name in ("law", "chain", "fixed_width", "max_nodes", "taps", "opened"):
            setattr(self, name, getattr(inner, name))

    def enter(self, rows: Any, state: State) -> None:
        self.inner.enter(rows, state)

    def observe(self, state: State) -> None:
        self.inner.observe(state)

    def propose(self, state: State, chance: Any) -> TokenTree:
        tree = self.inner.propose(state, chance)
        self.aside = self.inner.aside
        depths = (tree.depths * tree.used).max(1).values.tolist()
        self.seen += [
            (depth, room, length)
            for depth, room, live, length in zip(
                depths, state.on_host.room, state.on_host.live, state.on_host.lengths, strict=True
            )
            if live
        ]
        return tree


@pytest.mark.parametrize(("kind", "settings"), [*TREE.items(), *CHAINS.items()], ids=str)
def test_no_tree_is_deeper_than_the_room_of_its_row(kind, settings):
    """Rows come near their wanted length at different rounds; until then they get the whole
    depth."""
    target = lm("llama_gqa")
    made = Recorded(drafter(kind, target, settings))
    out = specdec.generate(
        target, prompts(9, 1, 6), drafter=made, temperature=3.0, max_new_tokens=9
    )
    assert [len(row) for row in tokens_of(out)] == [9, 9, 9]
    deepest = 2 if settings.get("branching") == [3, 2] else 3
    if kind not in BLOCKS:  # no state before the root
        assert {depth for depth, _, length in made.seen if length == 1} == {0}
    for depth, room, length in made.seen:
        assert depth <= room - 1
        # A ranked tree goes as deep as is worth it.
        assert depth == min(deepest, room - 1) or length == 1 or settings.get("draw") == "ranked"
    assert {depth for depth, *_ in made.seen} >= {0, 1, 2}


# ------------------------------------------------------------------------------------------- medusa


@pytest.mark.parametrize("tied", [False, True])
def test_medusas_batched_product_is_its_heads_one_by_one(tied, tmp_path):
    target = lm("llama_gqa", torch.float64)
    heads = random_head(
        lambda: MedusaHeads.for_target(target, heads=3, blocks=2, tied=tied), target.dtype, 0.2
    )
    states = torch.randn(
        5, target.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )

    def one_by_one(heads: MedusaHeads) -> torch.Tensor:
        return torch.stack([target.head(head(states)) if tied else head(states) for head in heads])

    with torch.no_grad():
        before = one_by_one(heads)
        torch.testing.assert_close(
            Stacked(heads, target.head)(states), before, rtol=EXACT, atol=EXACT
        )
        # its parameters are now views; they still mean the same
        torch.testing.assert_close(one_by_one(heads), before)
        heads.save(tmp_path / "head")
        again = MedusaHeads.load(tmp_path / "head")
        torch.testing.assert_close(one_by_one(again), before)
        assert (
            max(weight.shape[0] for weight in again.state_dict().values()) == target.vocabulary
        ) is not tied


def test_untrained_medusa_heads_say_what_the_target_says():
    """Blocks begin as the identity, heads as the target's LM head."""
    target = lm("llama_gqa")
    states = torch.randn(4, target.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for head in MedusaHeads.for_target(target, heads=3, blocks=2):
            torch.testing.assert_close(head(states), target.head(states))


# ------------------------------------------------------------------------------------- static trees


def best_by_force(accuracies: list[list[float]], nodes: int) -> float:
    """The largest worth of any tree of `nodes` nodes: sum over nodes of the product along the
    path."""
    every = [
        path
        for depth in range(1, len(accuracies) + 1)
        for path in itertools.product(*map(range, map(len, accuracies[:depth])))
    ]
    best = 0.0
    for chosen in itertools.combinations(every, nodes):
        if all(len(path) == 1 or path[:-1] in chosen for path in chosen):
            best = max(best, worth(accuracies, chosen))
    return best


def worth(accuracies: list[list[float]], paths: Any) -> float:
    total = 0.0
    for path in paths:
        product = 1.0
        for depth, rank in enumerate(path):
            product *= accuracies[depth][rank]
        total += product
    return total


@pytest.mark.parametrize("seed", range(6))
def test_the_greedy_tree_is_the_best_of_all(seed):
    random_numbers = random.Random(seed)
    accuracies = [
        sorted((random_numbers.random() for _ in range(2)), reverse=True) for _ in range(3)
    ]
    for nodes in (1, 3, 5):
        tree = RankTree.greedy(accuracies, nodes)
        assert tree.nodes == nodes
        assert worth(accuracies, tree.paths) == pytest.approx(
            best_by_force(accuracies, nodes), abs=1e-12
        )


def test_the_greedy_tree_is_made_of_what_training_measured():
    """Without a table, of a usual one."""
    head = models.head("medusa", lm("llama_gqa"))
    usual: Any = build("drafter", {"name": "medusa", "heads": head, "nodes": 5})
    assert usual.tree.nodes == 5
    head.notes = {"accuracies": [[0.9, 0.01], [0.9, 0.01], [0.9, 0.01]]}
    measured: Any = build("drafter", {"name": "medusa", "heads": head, "nodes": 3})
    assert measured.tree.paths == ((0,), (0, 0), (0, 0, 0))
    assert measured.chain


def test_a_greedy_tree_stops_where_nothing_is_ever_right():
    assert RankTree.greedy([[0.5, 0.0], [0.4, 0.2]], 10).paths == ((0,), (0, 0), (0, 1))
    # a head that is never right still drafts its best
    assert RankTree.greedy([[0.0, 0.0]], 3).paths == ((0,),)


def test_cartesian_and_given_trees():
    tree = RankTree.cartesian([2, 3])
    assert tree.nodes == 2 + 2 * 3
    assert tree.parents == [0, 0, 1, 1, 1, 2, 2, 2]
    assert tree.ranks == [0, 1, 0, 1, 2, 0, 1, 2]
    assert tree.depths == [1, 1, 2, 2, 2, 2, 2, 2]
    assert tree.ranks_needed == [2, 3]
    assert RankTree.given([[0, 0], [1], [0]]).paths == ((0,), (1,), (0, 0))  # in any order
    assert RankTree.cartesian([1, 1, 1]).is_chain
    assert not tree.is_chain


def test_a_static_tree_leaves_out_ranks_that_the_vocabulary_does_not_have():
    tree = RankTree.given([[0], [1], [2], [0, 2], [2, 0], [1, 1], [1, 1, 0]])
    assert tree.within(2).paths == ((0,), (1,), (1, 1), (1, 1, 0))
    assert tree.within(3) is tree
    with pytest.raises(ValueError, match="no rank below 2"):
        RankTree.given([[2], [2, 0]]).within(2)


@pytest.mark.parametrize("name", ["medusa", "hydra_heads", "eagle"])
def test_a_static_tree_is_drafted_in_a_vocabulary_smaller_than_its_ranks(name):
    target = tiny.target(3)
    shape = {"tree": [[0], [4], [0, 1], [0, 3], [4, 0]]} | (
        {} if name == "medusa" else {"draw": "static", "depth": 2}
    )
    drafter = make({"name": name, **shape}, target, tiny.draft(3))
    out = specdec.generate(target, [[0, 1, 2]], drafter=drafter, max_new_tokens=8)
    assert (
        out.tokens[0].tolist()
        == specdec.generate(target, [[0, 1, 2]], drafter="none", max_new_tokens=8)
        .tokens[0]
        .tolist()
    )
    assert out.steps[0].parents[0].tolist() == [-1, 0, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RankTree.given([[0, 0]]), r"\[0, 0\] hangs below \[0\]"),
        (lambda: RankTree.given([[0], [0]]), "once"),
        (lambda: RankTree.given([[]]), "non-empty"),
        (lambda: RankTree.given([[-1]]), ">= 0"),
        (lambda: RankTree.given([]), "at least one"),
        (lambda: RankTree.cartesian([2, 0]), "widths >= 1"),
        (lambda: RankTree.cartesian([]), "at least one"),
        (lambda: RankTree.greedy([], 3), "table of accuracies"),
        (lambda: RankTree.greedy([[0.5]], 0), "nodes must be an integer >= 1"),
    ],
)
def test_bad_static_trees(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("medusa", {"tree": [[0]], "branching": [1]}, "not both"),
        ("medusa", {"branching": [1, 1, 1, 1]}, "4 deep, the medusa head guesses 3"),
        ("hydra_heads", {"depth": 4}, "depth is 4, and there are 3 heads"),
        ("eagle", {"draw": "ranked", "tree": [[0]]}, "draw='static'"),
        ("eagle", {"depth": 2, "draw": "static", "tree": [[0], [0, 0], [0, 0, 0]]}, "3 deep"),
    ],
)
def test_bad_settings_of_drafters(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        drafter(kind, lm("llama_gqa"), settings)


def test_a_static_tree_takes_each_rank_at_its_parent():
    """Medusa's nodes carry the ranks of their depth, whatever the path above."""
    target, text = lm("llama_gqa"), torch.tensor(prompts(7)[0])
    made: Any = drafter("medusa", target, {"tree": [[0], [2], [0, 0], [2, 0], [2, 1]]})
    with torch.inference_mode():
        state = standing(made, target, text)
        tree = made.propose(state, specdec.Keyed(0).round(state))
        order = torch.stack([head(state.last.taps[0, 0, -1]) for head in made.heads]).argsort(
            dim=-1, descending=True, stable=True
        )
    first, second = order[0].tolist(), order[1].tolist()
    assert tree.tokens.tolist() == [
        [int(text[-1]), first[0], first[2], second[0], second[0], second[1]]
    ]
    assert tree.parents.tolist() == [[-1, 0, 0, 1, 2, 2]]


@pytest.mark.parametrize("kind", ["hydra_heads", "eagle", "eagle3"])
def test_a_static_tree_is_cut_from_the_tree_of_its_best_tokens(kind):
    """Each rank is taken among its parent's best: the nodes are those of a full tree of the best
    tokens."""
    target, text = lm("llama_gqa", torch.float64), torch.tensor(prompts(7)[0])
    paths = [[0], [1], [1, 1], [1, 0], [0, 1], [1, 1, 0]]

    def proposed(settings: dict[str, Any]) -> dict[tuple[int, ...], int]:
        made: Any = drafter(kind, target, {"depth": 3, **settings})
        with torch.inference_mode():
            state = standing(made, target, text)
            tree = made.propose(state, specdec.Keyed(0).round(state))
        children: dict[int, int] = {}
        named: dict[int, tuple[int, ...]] = {0: ()}
        for node, parent in enumerate(tree.parents[0].tolist()):
            if node:
                named[node] = (*named[parent], children.get(parent, 0))
                children[parent] = children.get(parent, 0) + 1
        return {
            named[node]: int(token) for node, token in enumerate(tree.tokens[0].tolist()) if node
        }

    full = proposed({"draw": "topk", "branching": [2, 2, 2]})
    static = proposed({"draw": "static", "tree": paths})
    # Siblings are sorted by rank, but [1, 1] has a sibling [1, 0] and [0, 1] has none, so ranks are
    # the tree's own.
    wanted = sorted((tuple(path) for path in paths), key=lambda path: (len(path), path))
    assert list(static.values()) == [full[path] for path in wanted]


def test_hydra_sees_the_path_of_each_node():
    """Two branches: what a node's head is given is the state, then the path from the root down."""
    target, text = lm("llama_gqa", torch.float64), torch.tensor(prompts(7)[0])
    made: Any = drafter("hydra_heads", target, {"depth": 3, "draw": "topk", "branching": [2, 2, 1]})
    seen: list[tuple[int, Tensor]] = []
    with torch.inference_mode():
        state = standing(made, target, text)
        heads = made._heads
        guess = heads.guess
        heads.guess = lambda index, states, path: (
            seen.append((index, path)) or guess(index, states, path)
        )
        try:
            tree = made.propose(state, specdec.Keyed(0).round(state))
        finally:
            del heads.guess
        assert [index for index, _ in seen] == [0, 1, 2]
        for index, paths in seen:
            level = (tree.depths[0] == index).nonzero()[:, 0].tolist()
            for place, node in enumerate(level):
                tokens = tree.tokens[0, [0, *tree.path(0, node)]]
                assert torch.equal(paths[0, place], target.embed(tokens).flatten())


# -------------------------------------------------------------------------- a vocabulary of its own


def test_a_reduced_vocabulary_proposes_only_its_own_tokens():
    target = lm("llama_gqa")
    made = drafter("eagle3", target, {"depth": 2, "draw": "wor", "branching": 4})
    head: Any = made.heads  # type: ignore[attr-defined]
    kept = set(head.token_ids.tolist())
    assert len(kept) == VOCABULARY * 2 // 3
    assert kept == set(head.t2d.nonzero()[:, 0].tolist())
    drafted: set[int] = set()

    class Noted(Eagle3):
        def propose(self, state: State, chance: Any) -> TokenTree:
            tree = super().propose(state, chance)
            drafted.update(tree.tokens[:, 1:][tree.used[:, 1:]].tolist())
            return tree

    noted = Noted(head, depth=2, draw="wor", branching=4)
    specdec.generate(target, prompts(9, 6), drafter=noted, temperature=3.0, max_new_tokens=24)
    assert drafted <= kept
    assert len(drafted) > 20


def test_the_reduced_vocabulary_is_the_most_frequent_tokens():
    target = lm("llama_gqa")
    frequency = torch.zeros(VOCABULARY)
    frequency[[5, 90, 33]] = torch.tensor([2.0, 7.0, 1.0])
    head = Eagle3Head.for_target(target, draft_vocabulary=4, frequency=frequency)
    assert head.token_ids.tolist() == [0, 5, 33, 90]  # ties to the lowest id
    torch.testing.assert_close(head.lm_head.weight, target.head_weight[[0, 5, 33, 90]])
    with pytest.raises(ValueError, match=f"1 .. {VOCABULARY}"):
        Eagle3Head.for_target(target, draft_vocabulary=VOCABULARY + 1)


# -------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_comes_back_from_its_folder(kind, tmp_path):
    target = lm("llama_gqa")
    made = drafter(kind, target, CHAINS[kind])
    made.heads.save(tmp_path / "head", accuracies=[[0.5, 0.25]])  # type: ignore[attr-defined]
    out = specdec.generate(target, prompts(6, 9), drafter=made, temperature=3.0, max_new_tokens=12)
    again = build("drafter", {"name": kind, "heads": str(tmp_path / "head"), **CHAINS[kind]})
    assert again.heads.notes["accuracies"] == [[0.5, 0.25]]  # type: ignore[attr-defined]
    same = specdec.generate(
        target, prompts(6, 9), drafter=again, temperature=3.0, max_new_tokens=12
    )
    assert tokens_of(same) == tokens_of(out)
    assert [step.num_accepted.tolist() for step in same.steps] == [
        step.num_accepted.tolist() for step in out.steps
    ]
    other = next(name for name in HEADS if name != kind)
    with pytest.raises(ValueError, match=f"expected a head of kind '{other}'"):
        build("drafter", {"name": other, "heads": str(tmp_path / "head"), **CHAINS[other]})


def test_the_users_model_and_config_are_left_as_they_were():
    model = shared("mistral_window")
    before = model.config.to_dict()
    for kind in HEADS:
        specdec.generate(
            model,
            prompts(5),
            drafter=drafter(kind, lm("mistral_window"), CHAINS[kind]),
            max_new_tokens=CONTEXT // 8,
        )
    assert model.config.to_dict() == before
