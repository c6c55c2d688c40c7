"""A target that drafts from a part of its memory: which tokens it reads, that the memory itself
stays right, and what is refused."""

import pytest
import torch

import specdec
from drafters.sparse_self import CHUNK, FIRST, QUERIES, SparseSelf
from experiments.certificates import tiny
from specdec import Enumerate, State, TokenTree
from specdec.models import attention
from specdec.models.memory import Pass, as_it_is
from specdec.models.session import TransformersSession
from tests import models

SELECTS = {
    "streaming": {"budget": 6},
    "snapkv": {"budget": 8},
    "chunks": {"budget": 9, "refresh": 2},
}
SHAPES = {"chain": {"depth": 3}, "tree": {"depth": 2, "branching": 2}}


def drafter(select, **shape):
    return SparseSelf(select=select, **{**SELECTS[select], **shape})


@pytest.mark.parametrize("name", ["llama_gqa", "mistral_window", "gemma3", "gpt2", "deepseek_v3"])
@pytest.mark.parametrize("select", SELECTS)
def test_greedy_output_is_the_targets_own(name, select):
    """Texts that begin within the budget and outgrow it, and one that is past it; more prompts than
    seats."""
    target, prompts = specdec.load(models.shared(name)), models.prompts(20, 3, 7)
    options = {"max_new_tokens": 16, "seats": 2}
    plain = specdec.generate(target, prompts, drafter="none", **options)
    ours = specdec.generate(target, prompts, drafter=drafter(select), **options)
    assert all(torch.equal(a, b) for a, b in zip(plain.tokens, ours.tokens, strict=True))
    assert ours.report.tau > 1


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_is_the_same_alone_and_in_a_batch(select, shape):
    target = specdec.load(models.shared("llama_gqa", torch.float64))
    prompts, options = models.prompts(19, 3, 8), {"temperature": 1.0, "max_new_tokens": 20}
    made = drafter(select, **SHAPES[shape])
    together = specdec.generate(target, prompts, drafter=made, **options)
    accepted = [step.num_accepted for step in together.steps]
    for row, prompt in enumerate(prompts):
        alone = specdec.generate(target, [prompt], drafter=made, request_ids=[row], **options)
        assert torch.equal(together.tokens[row], alone.tokens[0])
        counts = [int(each[row]) for each, _ in zip(accepted, alone.steps, strict=False)]
        assert counts == [int(step.num_accepted[0]) for step in alone.steps]  # the same drafts


@pytest.mark.parametrize("select", SELECTS)
def test_two_rounds_on_a_transformers_model_have_the_law_of_plain_sampling(select):
    """Three tokens, float64, every outcome, past the budget."""
    model = tiny.llama(3, seed=2).double()
    target, prompt = specdec.TransformersLM(model), [[0, 2, 1, 1, 0, 2]]

    def law(chosen):
        found: dict[tuple[int, ...], float] = {}

        def program(chance):
            return specdec.generate(
                target, prompt, drafter=chosen(), temperature=1.0, max_new_tokens=3, chance=chance
            )

        for probability, out in Enumerate().runs(program):
            key = tuple(out.tokens[0].tolist())
            found[key] = found.get(key, 0.0) + probability
        return found

    plain = law(lambda: "none")
    ours = law(lambda: SparseSelf(select=select, budget=4, depth=1))
    assert sum(abs(plain.get(key, 0) - ours.get(key, 0)) for key in {*plain, *ours}) / 2 < 1e-9
    model.float()


# ----------------------------------------------------------------------------- what is read


def masked(session, tree, positions):
    """Logits of a tree over the whole memory, where each row sees only the tokens at `positions`,
    for each layer and head or for all."""
    memory = session.memory
    over = memory.scoring(tree, 0)

    def options():
        given = over.options()
        mask = given["attention_mask"].clone()
        for row, seen in enumerate(positions):
            root = memory.roots[row]
            hidden = [slot for slot in range(root) if slot not in seen]
            mask[row, :, :, hidden] = torch.finfo(mask.dtype).min
        return {**given, "attention_mask": mask}

    runner = as_it_is(session.model.runner)
    return memory.run(runner, Pass(options), input_ids=tree.tokens).logits


@torch.inference_mode()
def test_an_excerpt_reads_the_first_and_the_last_tokens_at_their_own_positions():
    """Ragged rows, one of them shorter than the budget, through rounds that commit 1 to 4
    tokens."""
    target = specdec.load(models.shared("llama_gqa", torch.float64))
    rows, chosen, recent = 3, 2, 5
    excerpt = target.excerpt(rows, chosen, recent, nodes=8)
    prompts = models.prompts(14, 4, 7)
    with target.open(rows, 64) as session:
        counts = [len(prompt) for prompt in prompts]
        padded = torch.tensor([prompt + [0] * (14 - len(prompt)) for prompt in prompts])
        session.read(padded, counts)
        is_chosen = [False] * rows
        for turn in range(8):
            lengths = session.memory.lengths
            due = [row for row in range(rows) if lengths[row] > 7 and not is_chosen[row]]
            if due:
                first = torch.arange(chosen).expand(len(due), 1, -1)
                excerpt.choose(session, due, [first])
            for row in due:
                is_chosen[row] = True
            tokens = torch.tensor([models.prompts(5)[0]] * rows) + turn
            tree = TokenTree(tokens, [[-1, 0, 0, 1, 3]] * rows)
            ours = excerpt.score(session, tree)
            later = excerpt.score(session, tree, 3)
            seen = [
                set(range(length)) if length <= 7 else {0, 1, *range(length - recent, length)}
                for length in lengths
            ]
            wanted = masked(session, tree, seen)
            assert (ours - wanted).abs().max() < 1e-9
            assert (later - wanted[:, 3:]).abs().max() < 1e-9
            session.score(tree)
            path = torch.tensor([[1, 3, 4]] * rows).numpy()
            session.keep(path, [turn % 4, (turn + 1) % 4, 0])
            session.memory.check_integrity()
            excerpt.check_integrity()
    excerpt.close()


@torch.inference_mode()
def test_heads_have_tokens_of_their_own():
    """Each KV head of each layer sees those that were chosen for it: a full excerpt in another
    order is the whole memory."""
    target = specdec.load(models.shared("llama_gqa", torch.float64))
    excerpt = target.excerpt(1, 6, 4, nodes=3)
    random = torch.Generator().manual_seed(0)
    with target.open(1, 32) as session:
        session.read(torch.tensor(models.prompts(11)), [11])
        shuffled = [
            torch.stack([torch.randperm(6, generator=random) for _ in range(2)])[None]
            for _ in range(3)
        ]
        tree = TokenTree(torch.tensor([[5, 6]]), [[-1, 0]])
        excerpt.choose(session, [0], shuffled)
        ours = excerpt.score(session, tree)
        assert (ours - masked(session, tree, [set(range(11)) - {6}])).abs().max() < 1e-9


@torch.inference_mode()
def test_weights_are_those_of_the_models_own_attention():
    """Queries are the last tokens in memory; rows may differ in length."""
    model = models.shared("llama_gqa", torch.float64)
    target = specdec.load(model)
    plain = attention.rewired(model, "eager")
    prompts = models.prompts(12, 9)
    excerpt = target.excerpt(2, 2, 2, nodes=2)
    with target.open(2, 32) as session:
        padded = torch.tensor([prompts[0], prompts[1] + [0] * 3])
        session.read(padded, [12, 9])
        before = [block.clone() for block in session.memory.blocks]
        last = torch.tensor([prompt[-4:] for prompt in prompts])
        found = excerpt.weights(session, last)
        for row, prompt in enumerate(prompts):
            whole = plain(torch.tensor([prompt]), output_attentions=True).attentions
            for layer, weights in enumerate(whole):
                of_kv_heads = weights[0].unflatten(0, (2, 2)).sum(1)[:, -4:]
                length = len(prompt)
                # A query's weight on itself is on the slot behind the text.
                ours = found[layer][row, :, :length].clone()
                ours[:, length - 4 :] += found[layer][row, :, length : length + 4]
                assert (ours - of_kv_heads.sum(1)).abs().max() < 1e-6  # eager is float32
        for old, new in zip(before, session.memory.blocks, strict=True):
            for row, prompt in enumerate(prompts):  # only scratch was written
                assert torch.equal(old[:, row, :, : len(prompt)], new[:, row, :, : len(prompt)])


@pytest.mark.parametrize("select", SELECTS)
def test_a_drafting_pass_reads_the_budget_and_no_more(select, monkeypatch):
    target, read = specdec.load(models.shared("llama_gqa")), []
    attend = attention.attend

    def noted(module, query, key, *args, **options):
        read.append(key.shape[2])
        return attend(module, query, key, *args, **options)

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, noted)
    made = drafter(select, depth=2)
    out = specdec.generate(target, models.prompts(30), drafter=made, max_new_tokens=10)
    layers = 3
    drafting = [length for length in read if length <= made.budget + made.shape.slots]
    whole = [length for length in read if length > made.budget + made.shape.slots]
    assert len(whole) == (1 + len(out.steps)) * layers  # the prompt, and what verifies
    assert len(drafting) > len(out.steps) * layers


@pytest.mark.parametrize(
    ("select", "refresh", "passes"), [("snapkv", None, 1), ("snapkv", 4, 3), ("chunks", 2, 5)]
)
def test_how_often_tokens_are_chosen(select, refresh, passes, monkeypatch):
    """Once, or every `refresh` rounds, each row by its own rounds."""
    target, asked = specdec.load(models.shared("llama_gqa")), []
    again = TransformersSession.run_part
    monkeypatch.setattr(
        TransformersSession,
        "run_part",
        lambda self, *given, **options: asked.append(1) or again(self, *given, **options),
    )
    made = SparseSelf(select=select, budget=8, refresh=refresh, depth=1)
    # Nothing is accepted, so that every round adds a token.
    monkeypatch.setattr(
        SparseSelf, "grow", lambda self, logits, score, state, chance: _Wrong(state)
    )
    specdec.generate(target, models.prompts(12), drafter=made, max_new_tokens=11)
    assert len(asked) == passes


class _Wrong:
    """No draft."""

    def __init__(self, state):
        self.tree = TokenTree.root(state.roots)


def test_a_choice_is_the_best_tokens_and_the_first_ones():
    made = SparseSelf(select="snapkv", budget=24)
    weights = torch.zeros(1, 2, 60)
    weights[0, 0, 30], weights[0, 1, 40] = 5.0, 4.0
    weights[0, :, 55] = 9.0  # among the last tokens, which are there anyway
    found = made._best(weights, torch.tensor([48]))
    assert found.shape == (1, 2, 12)
    assert {0, 1, 2, 3, *range(27, 34)} <= set(found[0, 0].tolist())
    assert {0, 1, 2, 3, *range(37, 44)} <= set(found[0, 1].tolist())
    assert int(found.max()) < 48
    whole = SparseSelf(select="chunks", budget=64)
    weights = torch.zeros(1, 1, 100)
    weights[0, 0, 50] = 1.0
    found = whole._best(weights, torch.tensor([70]))[0, 0].tolist()
    assert found == [*range(CHUNK), *range(3 * CHUNK, 4 * CHUNK)]
    assert FIRST <= CHUNK


def test_the_memory_is_in_step_after_many_rounds(monkeypatch):
    """What drafting leaves in the target's slots does not stay there."""
    target, sessions = specdec.load(models.shared("llama_gqa")), []
    once = specdec.TransformersLM.open
    monkeypatch.setattr(
        specdec.TransformersLM, "open", lambda *given: sessions.append(once(*given)) or sessions[-1]
    )
    monkeypatch.setattr(TransformersSession, "close", lambda self: None)
    prompt = models.prompts(12)
    out = specdec.generate(
        target, prompt, drafter=drafter("chunks"), temperature=1.0, max_new_tokens=48
    )
    memory = sessions[-1].memory
    length = memory.lengths[0]
    text = torch.cat([torch.tensor(prompt[0]), out.tokens[0]])[None, :length]
    with torch.inference_mode(), once(target, 1, length) as fresh:
        fresh.read(text, [length])
        for ours, wanted in zip(memory.blocks, fresh.memory.blocks, strict=True):
            assert (ours[:, :, :, :length] - wanted).abs().max() < 1e-4


def test_a_run_reports_the_drafting_passes_and_the_copied_memory():
    target = specdec.load(models.shared("llama_gqa"))
    for select in SELECTS:
        out = specdec.generate(
            target, models.prompts(40), drafter=drafter(select), max_new_tokens=6
        )
        assert out.report.forward_seconds["drafter"] > 0
        assert 0 < out.report.cache_bytes["drafter"] < out.report.cache_bytes["target"]


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0}, "budget must be an integer >= 2, got 0"),
        ({"budget": 1}, "budget must be an integer >= 2, got 1"),
        ({"select": "best"}, "select must be streaming, snapkv, chunks, got 'best'"),
        ({"refresh": 4}, "refresh=4 is for select=snapkv and chunks"),
        ({"select": "chunks", "refresh": 0}, "refresh must be an integer >= 1, got 0"),
    ],
)
def test_settings_that_are_wrong_say_why(settings, message):
    with pytest.raises(ValueError, match=message):
        SparseSelf(**settings)


def test_targets_that_cannot_are_refused():
    class Plain:
        """No memory to lend."""

    with pytest.raises(ValueError, match="Plain gives no access to it, load a transformers model"):
        SparseSelf().begin(Plain(), 1, specdec.Sampling(0.0))
    eager = specdec.load(models.shared("gemma2"))
    if not eager.shows_weights:
        with pytest.raises(ValueError, match="cannot be watched; take select=streaming"):
            SparseSelf(select="snapkv").begin(eager, 1, specdec.Sampling(0.0))


def test_the_room_is_for_the_tokens_that_choose():
    assert SparseSelf(select="snapkv").max_nodes == QUERIES
    assert SparseSelf().max_nodes == 4
    state = State.of([[1, 2, 3]], specdec.Sampling(0.0))
    assert SparseSelf().budget > len(state.text(0))


# -------------------------------------------------------------------- memory in pages, in 8 bits


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("name", ["llama_gqa", "deepseek_v3"])
def test_over_pages_tokens_and_drafts_are_those_over_contiguous_memory(select, name):
    """float64, ragged rows that share a beginning, more prompts than seats, a bounded pool."""
    dtype = torch.float64 if name == "llama_gqa" else torch.float32
    target, found = specdec.load(models.shared(name, dtype)), []
    first, second, third = models.prompts(21, 4, 8)
    rows = [first, second, [*first[:12], *third], third]
    for kv in ("contiguous", specdec.KV("paged", page=4), specdec.KV("paged", page=4, pages=60)):
        over = target.with_kv(specdec.KV.asked(kv))
        out = specdec.generate(
            over, rows, drafter=drafter(select), temperature=1.0, max_new_tokens=18, seats=2
        )
        taken = [step.num_accepted.tolist() for step in out.steps]
        found.append(([row.tolist() for row in out.tokens], taken))
    assert found[0] == found[1] == found[2]
    assert max(map(max, found[0][1])) > 0


@pytest.mark.parametrize("kv", [specdec.KV(dtype="int8"), specdec.KV("paged", 4, dtype="int8")])
@pytest.mark.parametrize("select", SELECTS)
def test_in_8_bits_the_excerpt_is_of_what_is_stored(select, kv):
    """A budget that is not exceeded: the draft is the target's own next tokens."""
    target = specdec.load(models.shared("llama_gqa", torch.float64)).with_kv(kv)
    options = {"max_new_tokens": 12, "seats": 2}
    rows = models.prompts(20, 3, 7)
    plain = specdec.generate(target, rows, drafter="none", **options)
    for budget in (8, 64):
        made = SparseSelf(select=select, budget=budget, depth=2)
        ours = specdec.generate(target, rows, drafter=made, **options)
        assert [row.tolist() for row in ours.tokens] == [row.tolist() for row in plain.tokens]
    assert ours.report.acceptance_rate > 0.9
