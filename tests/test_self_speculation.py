"""Drafters made of the target's own layers: parts that share them, slots that stay right, and
targets that must be refused."""

import pytest
import torch
import yaml

import specdec
from drafters.early_exit import EarlyExit, ExitAdapter
from drafters.layer_skip import LayerSkip
from experiments.certificates import tiny
from experiments.training.calibration import Calibration, Skip, search
from specdec import Enumerate, TokenTree
from specdec.models.language_model import TransformersLM
from specdec.models.session import TransformersSession
from tests import models

SKIP = {"layers": 3, "attention": [1], "mlp": [1, 2]}
SHAPES = {
    "chain": {"depth": 3},
    "tree": {"depth": 2, "branching": 2},
    "ranked": {"depth": 3, "branching": 3, "draw": "ranked", "nodes": 5},
    "adaptive": {"depth": 3, "draw": "adaptive", "nodes": 6},
    "stopped": {"depth": 5, "stop": {"threshold": 0.011}},
    "adaptive stop": {"depth": 5, "stop": {"acceptance": 0.7, "threshold": 0.011}},
}
DRAFTERS = {
    "layer_skip": lambda **shape: LayerSkip(SKIP, **shape),
    "early_exit": lambda **shape: EarlyExit(2, **shape),
}
RESUMES = sorted(set(models.ARCHITECTURES) - {"gpt2", "opt"})


def test_an_adapter_is_not_trained_for_a_target_that_does_not_show_its_norm(monkeypatch):
    target = models.lm("llama_gqa")
    monkeypatch.setattr("specdec.models.layers.FINAL_NORMS", ("another_name",))
    ids, taps = torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, 1, target.hidden_size)
    with pytest.raises(ValueError, match="llama_gqa does not show its final norm"):
        ExitAdapter.for_target(target, 1).guesses(ids, taps, target)


@pytest.mark.parametrize("name", ["llama_gqa", "mistral_window", "gemma3", "mixtral"])
@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("shape", ["chain", "tree", "ranked"])
def test_greedy_output_is_the_targets_own(name, kind, shape):
    """Grouped heads, windows, hybrids, mixtures of experts; ragged prompts, longer than the
    window."""
    target, prompts = specdec.load(models.shared(name)), models.prompts(7, 3, 5)
    plain = specdec.generate(target, prompts, drafter="none", max_new_tokens=16)
    ours = specdec.generate(
        target, prompts, drafter=DRAFTERS[kind](**SHAPES[shape]), max_new_tokens=16
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.tokens, ours.tokens, strict=True))
    assert ours.report.tau > 1  # parts of a target agree with it now and then


@pytest.mark.parametrize("name", ["llama_gqa", "mistral_window"])
@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_is_the_same_alone_and_in_a_batch(name, kind, shape):
    target, prompts = specdec.load(models.shared(name, torch.float64)), models.prompts(7, 3, 5)
    options = {"temperature": 1.0, "max_new_tokens": 14}
    together = specdec.generate(target, prompts, drafter=DRAFTERS[kind](**SHAPES[shape]), **options)
    drafter = DRAFTERS[kind](**SHAPES[shape])
    for row, prompt in enumerate(prompts):
        alone = specdec.generate(target, [prompt], drafter=drafter, request_ids=[row], **options)
        assert torch.equal(together.tokens[row], alone.tokens[0])


@pytest.mark.parametrize("kind", ["layer_skip", "early_exit"])
@pytest.mark.parametrize(
    "shape", [{"depth": 1}, {"depth": 1, "branching": 2}, {"depth": 2, "stop": {"threshold": 0.45}}]
)
def test_two_rounds_on_a_transformers_model_have_the_law_of_plain_sampling(kind, shape):
    """Three tokens, float64, every outcome: what tables cannot show is that the part reads and
    writes the right slots."""
    model = tiny.llama(3, seed=2).double()
    target, prompt = specdec.TransformersLM(model), [[0, 2, 1]]

    def law(drafter):
        found: dict[tuple[int, ...], float] = {}

        def program(chance):
            chosen = "none" if drafter is None else drafter()
            return specdec.generate(
                target, prompt, drafter=chosen, temperature=1.0, max_new_tokens=4, chance=chance
            )

        for probability, out in Enumerate().runs(program):
            key = tuple(out.tokens[0].tolist())
            found[key] = found.get(key, 0.0) + probability
        return found

    own = {"layer_skip": lambda: LayerSkip({"layers": 2, "attention": [1], "mlp": [0]}, **shape)}
    own["early_exit"] = lambda: EarlyExit(1, **shape)
    plain, ours = law(None), law(own[kind])
    assert sum(abs(plain.get(key, 0) - ours.get(key, 0)) for key in {*plain, *ours}) / 2 < 1e-9
    model.float()


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("shape", ["tree", "ranked"])
def test_the_memory_is_in_step_after_200_rounds(kind, shape, monkeypatch):
    """What the rounds have left in the slots equals what one pass over the text writes."""
    longer = models.hf.LlamaConfig(**{**models.GROUPED, "max_position_embeddings": 1024})
    torch.manual_seed(0)
    target = specdec.load(models.sharpened(models.hf.LlamaForCausalLM(longer)))
    sessions, once = [], TransformersLM.open
    monkeypatch.setattr(
        TransformersLM, "open", lambda *given: sessions.append(once(*given)) or sessions[-1]
    )
    monkeypatch.setattr(TransformersSession, "close", lambda self: None)
    out = specdec.generate(
        target,
        models.prompts(5),
        drafter=DRAFTERS[kind](**SHAPES[shape]),
        temperature=1.0,
        max_new_tokens=800,
    )
    assert len(out.steps) >= 200
    memory = sessions[-1]._memory  # the last one opened is the run's; those before tried the part
    length = memory.lengths[0]
    kept = [block[:, :, :, :length].clone() for block in memory.blocks]
    text = torch.cat([torch.tensor(models.prompts(5)[0]), out.tokens[0]])[None, :length]
    with torch.inference_mode():
        again = once(target, 1, length)
        again.read(text, [length])
    for ours, fresh in zip(kept, again._memory.blocks, strict=True):
        assert (ours - fresh).abs().max() < 1e-4


@pytest.mark.parametrize("name", RESUMES)
def test_upper_layers_go_on_where_lower_ones_stopped(name):
    """The same logits as the whole model's, and the lower layers do not run again."""
    target = specdec.load(models.shared(name))
    ran = []
    for n, layer in enumerate(_layers(target.runner)):
        layer.register_forward_hook(lambda *_, n=n: ran.append(n))
    tokens = torch.tensor(models.prompts(9))
    tree = TokenTree(tokens[:, 4:], torch.tensor([[-1, 0, 0, 1, 2]]))
    with torch.inference_mode(), target.open(1, 12) as session:
        part = target.lower(2)
        session.read(tokens[:, :4], [4])
        whole = session.score(tree).logits
        ran.clear()
        states = part.score(session, tree).states
        assert ran == [0, 1]
        part.hand_over(session, tree, states)
        resumed = session.score(tree).logits
        assert ran == [0, 1, 2]
        ran.clear()
        part.hand_over(session, TokenTree(tree.tokens, [[-1, 0, 0, 1, 2]]), states)
        session.score(tree)  # another tree: from the start
        assert ran == [0, 1, 2]
    assert (resumed - whole).abs().max() < 1e-4


@pytest.mark.parametrize("shape", ["tree", "ranked", "adaptive"])
def test_every_node_of_a_tree_is_handed_over_with_its_own_state(shape):
    """Leaves too, which a ranked tree keeps without having scored them."""
    target, prompts = specdec.load(models.shared("llama_gqa")), models.prompts(9, 6)
    checked = []

    class Checked(EarlyExit):
        def propose(self, state, chance):
            tree = super().propose(state, chance)
            session, texts = state.memory, [state.text(row)[:-1] for row in range(state.rows)]
            if tree.num_nodes == 1 or not state.all_live:
                return tree
            handed = session._handed_over
            resumed = session.score(tree).logits
            session._handed_over = handed
            counts = [len(text) for text in texts]
            padded = torch.tensor([text + [0] * (max(counts) - len(text)) for text in texts])
            with target.open(state.rows, 0) as again:
                again.read(padded, counts)
                whole = again.score(tree).logits
            checked.append(float((resumed - whole)[tree.used].abs().max()))
            return tree

    specdec.generate(
        target, prompts, drafter=Checked(2, **SHAPES[shape]), temperature=1.0, max_new_tokens=6
    )
    assert checked
    assert max(checked) < 1e-4


def _layers(model):
    return next(
        module
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == 3
    )


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_families_that_alter_embeddings_cannot_resume(name):
    target = specdec.load(models.shared(name))
    with pytest.raises(
        ValueError,
        match=r"cannot resume at layer 2.*alters inputs_embeds on the way in.*layer_skip",
    ):
        specdec.generate(target, models.prompts(4), drafter=EarlyExit(2), max_new_tokens=4)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi", "qwen3_moe"])
def test_other_families_can_skip_sublayers(name):
    target = specdec.load(models.shared(name))
    plain = specdec.generate(target, models.prompts(4), drafter="none", max_new_tokens=12)
    ours = specdec.generate(target, models.prompts(4), drafter=LayerSkip(SKIP), max_new_tokens=12)
    assert torch.equal(plain.tokens[0], ours.tokens[0])


def test_the_users_model_stays_as_it_is():
    model = models.build("llama_gqa")
    names, before = (
        [name for name, _ in model.named_modules()],
        model(torch.tensor(models.prompts(6))).logits,
    )
    for drafter in (DRAFTERS["layer_skip"](), DRAFTERS["early_exit"]()):
        specdec.generate(specdec.load(model), models.prompts(5), drafter=drafter, max_new_tokens=8)
    assert [name for name, _ in model.named_modules()] == names
    assert model.config.num_hidden_layers == 3
    assert torch.equal(model(torch.tensor(models.prompts(6))).logits, before)


@pytest.mark.parametrize("kind", DRAFTERS)
def test_targets_with_extra_layers_are_refused(kind):
    target = specdec.load(models.shared("llama_gqa"), extra_layers=2)
    with pytest.raises(
        ValueError,
        match=f"{kind} drafts with the target's own layers.*2 extra layers.*extra_layers=0",
    ):
        specdec.generate(target, models.prompts(4), drafter=DRAFTERS[kind](), max_new_tokens=4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LayerSkip({"layers": 6, "attention": [1], "mlp": []}),
            "for a target of 6 layers.*has 3.*search_layers",
        ),
        (lambda: LayerSkip({"layers": 3, "attention": [7], "mlp": []}), "layer 7.*layers 0 to 2"),
        (
            lambda: LayerSkip({"layers": 3, "attention": [0, 1, 2], "mlp": [0, 1, 2]}),
            "at least one sublayer",
        ),
        (lambda: LayerSkip({"attention": [1]}), "must give layers"),
        (lambda: LayerSkip({"layers": 3, "attention": ["1"], "mlp": []}), "integers, got '1'"),
        (lambda: LayerSkip("no/such/file.yaml"), "cannot be read.*search_layers writes one"),
        (lambda: EarlyExit(3), "has 3 layers, so a pass can resume at layer 1 to 2; got 3"),
        (lambda: EarlyExit(0), "exit must be a number of layers >= 1, got 0"),
    ],
)
def test_settings_that_do_not_fit_say_why(make, message):
    with pytest.raises(ValueError, match=message):
        specdec.generate(
            specdec.load(models.shared("llama_gqa")),
            models.prompts(4),
            drafter=make(),
            max_new_tokens=4,
        )


def test_the_sublayers_that_are_named_are_left_out(monkeypatch):
    asked, without = [], TransformersLM.without
    monkeypatch.setattr(
        TransformersLM, "without", lambda *given: asked.append(given[1:]) or without(*given)
    )
    drafter = LayerSkip({"layers": 3, "attention": [1], "mlp": [0, 2]})
    drafter.begin(specdec.load(models.shared("llama_gqa")), 1, specdec.Sampling(1.0))
    assert asked == [([1], [0, 2])]


def test_a_set_can_come_from_a_file(tmp_path):
    place = tmp_path / "skip.yaml"
    place.write_text(yaml.safe_dump({**SKIP, "cost": 0.5}))
    target, options = (
        specdec.load(models.shared("llama_gqa")),
        {"max_new_tokens": 8, "temperature": 1.0},
    )
    given = specdec.generate(target, models.prompts(4), drafter=LayerSkip(SKIP), **options)
    read = specdec.generate(target, models.prompts(4), drafter=LayerSkip(place), **options)
    assert [step.num_accepted.tolist() for step in given.steps] == [
        step.num_accepted.tolist() for step in read.steps
    ]


def test_the_search_finds_the_layer_that_does_nothing():
    """A layer whose outputs are 0 can go at no loss; the search takes it first."""
    model = models.build("llama_gqa")
    with torch.no_grad():
        for weight in (
            model.model.layers[1].self_attn.o_proj.weight,
            model.model.layers[1].mlp.down_proj.weight,
        ):
            weight.zero_()
    texts = [torch.tensor(models.prompts(*[14] * 8))]
    path = search(Calibration(specdec.load(model), texts, context=10, temperature=1.0), 3)
    assert min(path[0].agreement) == pytest.approx(1, abs=1e-5)
    assert path[1].attention | path[1].mlp == {1}
    assert min(path[1].agreement) == pytest.approx(1, abs=1e-5)
    assert path[-1].cost < 1


def test_predicted_speed_up_of_a_set():
    """Agreement 0.5 at half the cost: depth 1 gives 1.5 / 1.5; at no cost depth 2 gives 1 + 0.5 +
    0.25."""
    assert Skip(agreement=(0.5, 0.5), cost=0.25).best() == (pytest.approx(1.2), 1)
    assert Skip(agreement=(0.5, 0.5), cost=0.0).best() == (pytest.approx(1.75), 2)
