"""At every node the law is what transformers' own processors give for that node's prefix."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import specdec
from specdec import Laws, Sampling, TokenTree
from specdec.probs import DraftLaws, top
from specdec.state import State
from tests.models import prompts, shared

V, LENGTHS = 11, [6, 9]
PARENTS = torch.tensor([[-1, 0, 0, 1, 3, 2], [-1, 0, 1, 2, -1, 0]])
OPTIONS = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.3, "top_k": 4},
    {"temperature": 0.9, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.15},
    {"temperature": 0.7, "top_k": 6, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.0, "repetition_penalty": 1.7},
    {"temperature": 0.8, "logits_processors": (NoRepeatNGramLogitsProcessor(2),)},
    {
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "repetition_penalty": 1.3,
        "logits_processors": (NoRepeatNGramLogitsProcessor(2),),
    },
    {
        "temperature": 0.7,
        "repetition_penalty": 1.3,
        "logits_processors": (lambda ids, scores: scores - 1.5,),  # a penalty sees another sign
    },
]


def state_of(tokens: torch.Tensor, lengths: list[int], sampling: Sampling) -> State:
    texts = [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)]
    return State.of(texts, sampling, 99, tokens.shape[1])


def scored(
    sampling: Sampling, dtype: torch.dtype = torch.float64
) -> tuple[Laws, torch.Tensor, list[list[list[int]]]]:
    """Laws over two ragged rows of few tokens (so that n-grams repeat), their logits, and every
    node's prefix."""
    random = torch.Generator().manual_seed(3)
    tokens = torch.randint(4, (2, 12), generator=random)
    drafted = torch.randint(4, PARENTS.shape, generator=random)
    for row, length in enumerate(LENGTHS):
        drafted[row, 0] = tokens[row, length - 1]
    tree = TokenTree(drafted, PARENTS)
    logits = torch.randn(2, 6, V, generator=random, dtype=torch.float64).to(dtype)
    committed = [tokens[row, :length].tolist() for row, length in enumerate(LENGTHS)]
    prefixes = [
        [committed[row] + drafted[row, tree.path(row, node)].tolist() for node in range(6)]
        for row in range(2)
    ]
    return Laws(logits, tree, state_of(tokens, LENGTHS, sampling)), logits, prefixes


def of_transformers(logits: torch.Tensor, prefix: list[int], options: dict) -> torch.Tensor:
    """The processors that generate(do_sample=True) would set up, in its order."""
    processors = LogitsProcessorList()
    if "repetition_penalty" in options:
        processors.append(RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    processors.extend(options.get("logits_processors", ()))
    processors.append(TemperatureLogitsWarper(options["temperature"]))
    if "top_k" in options:
        processors.append(TopKLogitsWarper(options["top_k"]))
    if "top_p" in options:
        processors.append(TopPLogitsWarper(options["top_p"]))
    if "min_p" in options:
        processors.append(MinPLogitsWarper(options["min_p"]))
    return processors(torch.tensor([prefix]), logits[None].clone())[0].softmax(-1)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_the_law_at_every_node_is_that_of_transformers(options):
    laws, logits, prefixes = scored(Sampling(**options))
    rows, nodes = laws.trees.used.nonzero(as_tuple=True)
    found = laws[rows, nodes]
    for place, (row, node) in enumerate(zip(rows.tolist(), nodes.tolist(), strict=True)):
        expected = of_transformers(logits[row, node], prefixes[row][node], options)
        torch.testing.assert_close(found[place], expected, atol=1e-12, rtol=0)
        assert torch.equal(found[place] == 0, expected == 0)


def test_prefixes_matter_here():
    """The penalties above see the drafted path, not only what is committed."""
    laws, _, prefixes = scored(Sampling(1.0, logits_processors=(NoRepeatNGramLogitsProcessor(2),)))
    rows, nodes = laws.trees.used.nonzero(as_tuple=True)
    banned = laws[rows, nodes] == 0
    assert banned.any()
    by_prefix = {
        tuple(prefixes[row][node]): banned[i]
        for i, (row, node) in enumerate(zip(rows.tolist(), nodes.tolist(), strict=True))
    }
    root, *below = [
        pattern
        for prefix, pattern in by_prefix.items()
        if list(prefix[: LENGTHS[0]]) == prefixes[0][0]
    ]
    assert any(not torch.equal(root, pattern) for pattern in below)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_laws_of_all_nodes_at_once_are_those_of_each(options):
    """The target's, and the drafter's from any node on."""
    laws, logits, prefixes = scored(Sampling(**options))
    rows, nodes = laws.trees.used.nonzero(as_tuple=True)
    found = [prefix.tolist() for prefix in laws.prefixes(rows, nodes)]
    assert found == [
        prefixes[row][node] for row, node in zip(rows.tolist(), nodes.tolist(), strict=True)
    ]
    each, before = laws[rows, nodes], logits.clone()
    assert torch.equal(laws.everywhere[rows, nodes], each)
    assert torch.equal(laws.scores, before)
    for start in range(logits.shape[1]):
        drafted = DraftLaws(laws.state)(logits[:, start:], laws.trees, start)
        assert torch.equal(drafted, laws.everywhere[:, start:])


@pytest.mark.parametrize("options", OPTIONS[-4:], ids=lambda options: "-".join(options))
def test_temperature_0_is_the_argmax_after_penalties(options):
    options = {**options, "temperature": 0.0}
    laws, logits, prefixes = scored(Sampling(**options))
    rows, nodes = laws.trees.used.nonzero(as_tuple=True)
    penalties = {
        key: options[key] for key in ("repetition_penalty", "logits_processors") if key in options
    }
    for row, node, law in zip(rows.tolist(), nodes.tolist(), laws[rows, nodes], strict=True):
        best = of_transformers(
            logits[row, node], prefixes[row][node], {"temperature": 1.0, **penalties}
        ).argmax()
        assert law.nonzero().tolist() == [[int(best)]]
        assert int(laws.argmax[row, node]) == int(best)


def test_a_processor_that_edits_in_place_bends_nothing():
    def ban(ids, scores):
        scores[:, 2] = -torch.inf
        scores -= 1
        return scores

    laws, logits, _ = scored(Sampling(1.0, logits_processors=(ban,)))
    before, at = logits.clone(), (torch.tensor([0, 0, 1]), torch.tensor([0, 0, 2]))
    first, again = laws[at], laws[at]
    assert torch.equal(first, again)
    assert torch.equal(laws.scores, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_become_laws_in_float32(dtype):
    laws, *_ = scored(Sampling(1.0), dtype)
    law = laws[torch.tensor([0]), torch.tensor([0])]
    assert law.dtype == torch.float32
    torch.testing.assert_close(law, laws.scores[:1, 0].float().softmax(-1))


def test_laws_that_are_none_are_counted():
    for bad in (torch.nan, -torch.inf):
        for temperature in (0.0, 1.0):
            laws, *_ = scored(Sampling(temperature))
            laws.scores[1, 0] = bad
            laws.argmax if temperature == 0 else laws[torch.tensor([0, 1]), torch.tensor([0, 0])]
            assert (laws.faulty > 0).tolist() == [False, True]
    laws, *_ = scored(Sampling(1.0))
    laws.scores[1, 4] = torch.nan  # of a node that the row does not use
    assert laws.everywhere.isnan().any()
    assert not laws.faulty.any()


# --------------------------------------------------------------------------------------------- ties


def test_ties_go_to_the_lowest_index():
    values = torch.tensor([[1.0, 3, 3, 2, 3], [0, 0, 0, 0, 0], [-1, -0.0, 0.0, -torch.inf, -2]])
    assert top(values, 4).tolist() == [[1, 2, 4, 3], [0, 1, 2, 3], [1, 2, 0, 4]]
    assert top(values, 1).tolist() == [[1], [0], [1]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_top_is_a_stable_sort(dtype):
    values = (
        torch.randint(-9, 9, (50, 300), generator=torch.Generator().manual_seed(0)).to(dtype) / 4
    )
    assert torch.equal(top(values, 300), values.sort(dim=1, descending=True, stable=True).indices)


def test_ties_at_temperature_0():
    laws, *_ = scored(Sampling(0.0))
    laws.scores[0, 0] = torch.tensor([0.0, 5, 1, 5, 5] + [0] * (V - 5))
    assert laws[torch.tensor([0]), torch.tensor([0])].nonzero().tolist() == [[0, 1]]
    assert int(laws.argmax[0, 0]) == 1


# ------------------------------------------------------------------------------------ whole outputs


@pytest.mark.parametrize("drafter", ["none", {"name": "ngram", "tree": True}])
def test_penalised_greedy_output_is_that_of_transformers(drafter):
    model, rows = shared("llama_gqa", torch.float64), prompts(9, 5)
    out = specdec.generate(
        model,
        rows,
        drafter=drafter,
        max_new_tokens=20,
        repetition_penalty=1.4,
        logits_processors=(NoRepeatNGramLogitsProcessor(2),),
    )
    for row, tokens in zip(rows, out.tokens, strict=True):
        reference = model.generate(
            torch.tensor([row]),
            attention_mask=torch.ones(1, len(row), dtype=torch.long),
            do_sample=False,
            max_new_tokens=20,
            repetition_penalty=1.4,
            no_repeat_ngram_size=2,
            pad_token_id=0,
        )
        assert tokens.tolist() == reference[0, len(row) :].tolist()
