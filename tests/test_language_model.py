"""A stock model scores a tree as if every root-to-node path had been read on its own."""

import copy

import numpy as np
import pytest
import torch

import specdec
from specdec.models.language_model import TransformersLM
from specdec.tree import TokenTree
from tests import models
from tests.models import ARCHITECTURES, CONTEXT, REFUSED, VOCABULARY, WINDOW, build, prompts, shared

LENGTHS = [9, 12, 7]  # ragged, all longer than the sliding window
PARENTS = torch.tensor([[-1, 0, 0, 1, 1, 3, 2], [-1, 0, 1, 2, 3, 4, -1], [-1, 0, 0, 0, -1, 3, 5]])
over_both_layouts = pytest.mark.usefixtures("layout")
KEPT = np.array([[1, 3, 5], [1, 2, -1], [3, -1, -1]]), [3, 2, 0]


def tokens_of(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def padded(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])


def worst(model, tree: TokenTree, logits: torch.Tensor, before: list[list[int]]) -> float:
    """The largest difference, over all used nodes, from reading the path to the node plainly."""
    found = 0.0
    for row, committed in enumerate(before):
        for node in range(tree.num_nodes):
            if node and tree.parents[row, node] < 0:
                continue
            path = committed + tree.tokens[row, [0, *tree.path(row, node)]].tolist()
            plain = model(input_ids=torch.tensor([path])).logits[0, -1]
            found = max(found, float((plain - logits[row, node]).abs().max()))
    return found


@torch.inference_mode()
def both_rounds(model, tolerance: float, taps=()) -> None:
    """A tree over a ragged batch, then another one after a path was kept."""
    lm, rows = TransformersLM(model), prompts(*LENGTHS)
    with lm.open(3, 40) as session:
        session.read(padded(rows), LENGTHS)
        tree = TokenTree(tokens_of(1, 3, 7), PARENTS)
        logits = session.score(tree, taps=taps).logits
        assert worst(model, tree, logits, rows) < tolerance

        path, counts = KEPT
        session.keep(path, counts)
        session._memory.check_integrity()
        rows = [
            row + tree.tokens[i, [0, *path[i, : counts[i]].tolist()]].tolist()
            for i, row in enumerate(rows)
        ]
        assert session._memory.lengths == [len(row) for row in rows]
        following = TokenTree(tokens_of(2, 3, 7), PARENTS.flip(0))
        assert worst(model, following, session.score(following).logits, rows) < tolerance


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tree_logits_are_plain_logits(name):
    assert min(LENGTHS) > WINDOW
    both_rounds(shared(name), 1e-5)


@over_both_layouts
@pytest.mark.parametrize("name", ["llama_gqa", "gemma3", "mistral_window", "gpt2"])
def test_float64_is_exact_to_rounding(name):
    both_rounds(build(name, torch.float64), 1e-10)


@over_both_layouts
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_other_attention_of_the_user_works_too(attention):
    model = build("llama_gqa")
    model.config._attn_implementation = attention
    both_rounds(model, 1e-5)
    assert model.config._attn_implementation == attention


@over_both_layouts
@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama_gqa", "mistral_window", "gemma3"])
def test_one_level_after_the_other_gives_the_same_logits(name):
    """What a draft model does: the root is read, then each level is scored with `start`."""
    model, rows = shared(name), prompts(*LENGTHS)
    session = TransformersLM(model).open(3, 40)
    root = tokens_of(1, 3, 7)[:, 0]
    read = [[*row, int(token)] for row, token in zip(rows, root, strict=True)]
    logits = [session.read(padded(read), [length + 1 for length in LENGTHS], root=True).logits]
    tree = TokenTree(tokens_of(1, 3, 7), torch.tensor([[-1, 0, 0, 1, 1, 2, 2]] * 3))
    first = TokenTree(tree.tokens[:, :3], tree.parents[:, :3])
    logits += [session.score(first, 1).logits, session.score(tree, 3).logits]
    assert worst(model, tree, torch.cat(logits, 1), rows) < 1e-5


@over_both_layouts
@torch.inference_mode()
@pytest.mark.parametrize("name", ["mistral_window", "gemma2", "gemma3"])
def test_windows_count_positions_not_slots(name):
    """A path longer than the window, behind siblings that put its nodes in later slots than their
    positions."""
    model, rows = shared(name), prompts(*LENGTHS)
    session = TransformersLM(model).open(3, 40)
    session.read(padded(rows), LENGTHS)
    tree = TokenTree(tokens_of(1, 3, 10), torch.tensor([[-1, 0, 0, 0, 3, 4, 5, 6, 7, 8]] * 3))
    assert int(tree.depths.max()) > WINDOW
    assert worst(model, tree, session.score(tree).logits, rows) < 1e-5


@over_both_layouts
@torch.inference_mode()
def test_taps_are_the_models_own_hidden_states():
    model, (row,) = shared("llama_gqa"), prompts(9)
    session = TransformersLM(model).open(1, 16)
    taps = session.read(torch.tensor([row]), [9], taps=(0, 2, "head")).taps
    states = model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
    for place, state in enumerate((states[0], states[2], states[-1])):
        torch.testing.assert_close(taps[:, :, place], state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_take_a_tree_are_refused_with_the_reason(name):
    make, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason):
        TransformersLM(make().eval(), name=name)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        TransformersLM(build("llama_gqa").train())


def test_a_model_that_ignores_positions_is_found_out():
    model = build("llama_gqa")
    forward = model.forward

    def without_mask(
        input_ids, position_ids=None, attention_mask=None, past_key_values=None, use_cache=None
    ):
        return forward(
            input_ids=input_ids, position_ids=position_ids, past_key_values=past_key_values
        )

    model.forward = without_mask
    with pytest.raises(ValueError, match="differ from plain decoding"):
        TransformersLM(model)


def test_an_error_inside_a_foreign_forward_is_a_refusal():
    model = build("llama_gqa")
    model.forward = lambda input_ids, position_ids, attention_mask, past_key_values, use_cache: (
        past_key_values.rows
    )
    with pytest.raises(
        ValueError, match=r"cannot score a token tree: its forward fails.*no attribute 'rows'"
    ):
        TransformersLM(model)


def test_what_is_not_plain_attention_may_not_pass_for_it():
    """A term that only the model's own attention adds is missed by all passes of ours alike; its
    own pass tells."""
    model = build("llama_gqa")
    attend = model.model.layers[0].self_attn
    forward = attend.forward

    def with_a_term(hidden_states, past_key_values=None, **options):
        out, weights = forward(hidden_states, past_key_values=past_key_values, **options)
        return (out + 1 if past_key_values is None else out), weights

    attend.forward = with_a_term
    with pytest.raises(ValueError, match="differ from plain decoding"):
        TransformersLM(model)


def test_longrope_is_used_up_to_the_original_context():
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "rope_theta": 1e4,
    }
    rope["original_max_position_embeddings"] = 24
    config = models.hf.Phi3Config(
        **models.GROUPED, original_max_position_embeddings=24, rope_parameters=rope
    )
    lm = TransformersLM(models.sharpened(models.hf.Phi3ForCausalLM(config)))
    assert lm.context == 24


@over_both_layouts
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_users_model_is_left_as_it_was(attention):
    model = build("gemma3")
    model.config._attn_implementation = attention
    config, weights = copy.deepcopy(model.config.to_dict()), copy.deepcopy(model.state_dict())
    specdec.generate(model, prompts(6), drafter="ngram", max_new_tokens=6)
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == attention
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    assert not model.training


# ---------------------------------------------------------------------------------------- the cache


def test_the_memory_is_allocated_once_and_says_how_large_it_is(monkeypatch):
    opened = []
    once = TransformersLM.open

    def counted(self, rows, slots):
        opened.append((rows, slots))
        return once(self, rows, slots)

    lm = specdec.load(shared("llama_gqa"))
    monkeypatch.setattr(TransformersLM, "open", counted)
    rows = prompts(9, 4)
    out = specdec.generate(lm, rows, drafter={"name": "ngram", "length": 5}, max_new_tokens=20)
    slots = 9 + 20 + 6  # the longest prompt, the new tokens, the largest tree with its root
    assert opened == [(2, slots)]
    layers, heads, size, bytes_each = 3, 2, 8, 4
    assert out.report.cache_bytes["target"] == 2 * layers * 2 * heads * slots * size * bytes_each


def test_keys_and_values_may_differ_in_size_as_in_latent_attention():
    session = TransformersLM(shared("deepseek_v3")).open(1, 10)
    assert session.nbytes == 3 * 10 * (16 + 8) * 4  # layers, slots, the latent and the rotary part


@torch.inference_mode()
@pytest.mark.parametrize("slots", [2, max(LENGTHS)])
def test_memory_grows_where_a_text_outgrows_it(slots):
    """When it is empty, and when it is full."""
    model, rows = shared("llama_gqa"), prompts(*LENGTHS)
    session = TransformersLM(model).open(3, slots)
    session.read(padded(rows), LENGTHS)
    tree = TokenTree(tokens_of(1, 3, 7), PARENTS)
    assert worst(model, tree, session.score(tree).logits, rows) < 1e-5
    session._memory.check_integrity()
    assert session._memory.slots == 64


@over_both_layouts
@torch.inference_mode()
def test_reading_gives_the_logits_after_each_rows_own_end():
    model, rows = shared("llama_gqa"), prompts(*LENGTHS)
    with TransformersLM(model).open(3, 40) as session:
        logits = session.read(padded(rows), LENGTHS).logits
        for row, text in enumerate(rows):
            plain = model(input_ids=torch.tensor([text])).logits[0, -1]
            torch.testing.assert_close(logits[row, 0], plain, atol=1e-5, rtol=0)


@over_both_layouts
@torch.inference_mode()
def test_padding_past_the_context_is_no_position():
    """One row is full, its neighbour reads on: learned positions end with the context."""
    model = shared("gpt2")
    rows = prompts(CONTEXT - 1, 2)
    more = tokens_of(5, 2, 4)
    with TransformersLM(model).open(2, CONTEXT + 4) as session:
        session.read(padded(rows), [CONTEXT - 1, 2])
        logits = session.read(more, [1, 4]).logits
        for row, count in ((0, 1), (1, 4)):
            text = torch.tensor([rows[row] + more[row, :count].tolist()])
            plain = model(input_ids=text).logits[0, -1]
            torch.testing.assert_close(logits[row, 0], plain, atol=1e-5, rtol=0)


@over_both_layouts
@torch.inference_mode()
def test_the_last_node_of_a_tree_does_not_see_its_sibling():
    """Scored alone, it looks like the end of a chain."""
    model, rows = shared("llama_gqa"), prompts(6)
    tree = TokenTree(tokens_of(1, 1, 3), [[-1, 0, 0]])
    with TransformersLM(model).open(1, 20) as session:
        session.read(padded(rows), [6])
        whole = session.score(tree).logits
        assert worst(model, tree, whole, rows) < 1e-5
        alone = session.score(tree, 2).logits
        torch.testing.assert_close(alone[:, 0], whole[:, 2], atol=1e-5, rtol=0)


@over_both_layouts
@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama_gqa", "gemma3", "mistral_window"])
def test_a_row_can_be_emptied_and_read_anew_while_its_neighbours_stay(name):
    model, rows = shared(name), prompts(*LENGTHS)
    session = TransformersLM(model).open(3, 40)
    session.read(padded(rows), LENGTHS)
    (other,) = prompts(11, seed=9)
    session.release([1])
    session.read(torch.tensor([other[:6]]), [6], rows=[1])
    session.read(torch.tensor([other[6:]]), [5], rows=[1])  # goes on behind what is there
    session._memory.check_integrity()
    tree = TokenTree(tokens_of(1, 3, 7), PARENTS)
    assert worst(model, tree, session.score(tree).logits, [rows[0], other, rows[2]]) < 1e-5


@over_both_layouts
def test_a_closed_session_says_so():
    session = TransformersLM(shared("llama_gqa")).open(1, 10)
    session.close()
    assert session.nbytes == 0
    with pytest.raises(ValueError, match=r"this session is closed; open another one"):
        session.score(TokenTree.root(torch.tensor([1])))


# -------------------------------------------------------------------------- extra layers and dtypes


@over_both_layouts
@torch.inference_mode()
@pytest.mark.parametrize("name", ["llama_gqa", "qwen3", "mistral_window", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extra_layers_change_no_bit_of_the_logits(name, dtype):
    model = build(name, dtype)
    deeper = specdec.load(model, extra_layers=4)
    assert deeper.extra_layers == 4
    assert deeper.config.num_hidden_layers == 7
    assert model.config.num_hidden_layers == 3
    ids, tree = torch.tensor(prompts(8)), TokenTree(tokens_of(1, 1, 7), PARENTS[:1])
    scored = []
    for lm in (TransformersLM(model), deeper):
        session = lm.open(1, 20)
        session.read(ids, [8])
        scored.append(session.score(tree).logits)
    assert torch.equal(*scored)
    out = specdec.generate(deeper, ids, drafter="none", max_new_tokens=3)
    assert out.report.extra_layers == 4


def test_extra_layers_are_refused_where_they_would_not_be_zero():
    with pytest.raises(ValueError, match="o_proj"):
        specdec.load(shared("gpt2"), extra_layers=2)


@over_both_layouts
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_floating_point_type_runs(dtype, temperature):
    model = build("llama_gqa", dtype)
    draft = {"name": "small_model", "model": model, "depth": 3, "branching": [2, 1, 1]}
    out = specdec.generate(
        model, prompts(7, 4), drafter=draft, max_new_tokens=12, temperature=temperature
    )
    assert [len(tokens) for tokens in out.tokens] == [12, 12]
    assert out.report.tau > 1.5  # the draft model is the target


def test_context_is_the_models():
    assert TransformersLM(shared("llama_gqa")).context == CONTEXT
