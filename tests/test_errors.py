"""Bad input gets an error that names what came, what was expected and what to do; and nothing is
half done."""

import json
import re
import time
from typing import Any

import numpy as np
import pytest
import torch

import specdec
from experiments.certificates.suite import drafters, pairs, rules
from specdec import Coupled, Drafter, Keyed, Refused, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.__main__ import main
from specdec.models.table import TableModel, TableSession
from specdec.plugins import build
from tests.exact import KNOWN, make, title
from tests.models import CONTEXT, VOCABULARY, head, lm, shared
from tests.models import build as fresh

ROW = [1, 2, 3, 4]


def refused(
    *words: str,
    prompts: Any = ROW,
    target: Any = None,
    error: type[Exception] = ValueError,
    **options: Any,
) -> str:
    """`generate` raises, and its message contains every word. Streaming says the same."""
    target = shared("llama_gqa") if target is None else target
    options = {"drafter": "none", "max_new_tokens": 8, **options}
    with pytest.raises(error) as caught:
        specdec.generate(target, prompts, **options)
    message = str(caught.value)
    assert not [word for word in words if word not in message], message
    with pytest.raises(error, match=re.escape(message)):  # at the call, or when it is met
        list(specdec.stream(target, prompts, **options))
    return message


# ------------------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize("empty", [[[]], [[1], []], torch.zeros(1, 0, dtype=torch.long)])
def test_an_empty_prompt(empty):
    refused(f"prompt {len(empty) - 1} is empty", "at least one token", prompts=empty)


def test_no_prompts():
    refused("no prompts", "list of strings", prompts=[])


def test_a_prompt_longer_than_the_context():
    refused(
        f"prompt 1 has {CONTEXT} tokens",
        f"context is {CONTEXT}",
        "shorten",
        prompts=[ROW, [1] * CONTEXT],
    )


def test_prompt_and_new_tokens_longer_than_the_context():
    refused(
        f"prompt 0 has {CONTEXT - 5} tokens",
        "max_new_tokens=8",
        f"{CONTEXT + 3}",
        f"context of {CONTEXT}",
        "at most 5",
        prompts=[1] * (CONTEXT - 5),
    )
    fits = specdec.generate(shared("llama_gqa"), [1] * (CONTEXT - 5), max_new_tokens=5)
    assert len(fits.tokens[0]) == 5


@pytest.mark.parametrize("token", [-1, VOCABULARY, 10**6])
def test_tokens_outside_the_vocabulary(token):
    refused(
        "prompt 1", f"token id {token}", f"vocabulary of {VOCABULARY}", prompts=[ROW, [1, token]]
    )


def test_texts_without_a_tokenizer():
    refused("no tokenizer", "token ids", "(model, tokenizer)", prompts="def f(")


@pytest.mark.parametrize(
    "mixed", [["text", [1, 2]], [[1, 2], "text"], [[1, "a"]], [[1.5]], [[True]]]
)
def test_prompts_that_mix_kinds(mixed):
    refused("prompt", "strings", "integer ids", prompts=mixed)


def test_a_tensor_of_floats():
    refused("float32", "integer ids", prompts=torch.ones(1, 3))


# ------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("temperature", -0.1, ">= 0"),
        ("temperature", float("nan"), ">= 0"),
        ("temperature", float("inf"), "finite"),
        ("temperature", "hot", ">= 0"),
        ("top_p", 0.0, "(0, 1]"),
        ("top_p", 1.1, "(0, 1]"),
        ("top_p", float("nan"), "(0, 1]"),
        ("top_k", 0, ">= 1"),
        ("top_k", -3, ">= 1"),
        ("top_k", 2.5, ">= 1"),
        ("min_p", 1.5, "[0, 1]"),
        ("min_p", -0.5, "[0, 1]"),
        ("repetition_penalty", 0.0, "> 0"),
        ("logits_processors", (3,), "callables"),
        ("max_new_tokens", 0, ">= 1"),
        ("max_new_tokens", 2.5, ">= 1"),
        ("max_new_tokens", True, ">= 1"),
        ("request_ids", [1, 2], "one integer per prompt"),
        ("stop", ["", "x"], "non-empty"),
        ("drafter", 7, "a drafter is a name"),
        ("drafter", Drafter, "abstract"),
        ("verifier", 7, "a verifier is a name"),
        ("verifier", None, "a verifier is a name"),
        ("verifier", {"_target_": "drafters.ngram.NGram"}, "no specdec.Verifier"),
        ("temperature", 10**400, "finite"),
        ("temperature", 1e-40, "0 (greedy) or at least"),
        ("top_k", "5", ">= 1"),
        ("top_k", float("nan"), ">= 1"),
        ("top_k", float("inf"), ">= 1"),
        ("logits_processors", None, "list of callables"),
        ("logits_processors", abs, "list of callables"),
        ("stop", None, "non-empty strings"),
        ("stop", 5, "non-empty strings"),
        ("seed", "x", "must be an integer"),
        ("seed", 1.5, "must be an integer"),
        ("seed", 2**64, "must be an integer"),
        ("request_ids", 5, "one integer per prompt"),
        ("request_ids", "a", "one integer per prompt"),
        ("request_ids", [1.5], "[0] must be an integer"),
        ("request_ids", [2**70], "[0] must be an integer"),
        ("chance", "keyed", "Keyed(0)"),
        ("chance", Keyed, "Keyed(0)"),
        ("ignore_eos", "no", "True or False"),
        ("allow_lossy", "no", "True or False"),
    ],
)
def test_options_outside_their_range(option, value, expected):
    shown = (
        ()
        if option in ("logits_processors", "request_ids", "drafter", "verifier")
        else (repr(value),)
    )
    refused(option, expected, *shown, **{option: value})


@pytest.mark.parametrize(
    ("given", "came"),
    [
        (lambda ids, scores: scores[:, :3], "(1, 3)"),
        (lambda ids, scores: scores[0], f"({VOCABULARY},)"),
        (lambda ids, scores: None, "NoneType"),
        (lambda ids, scores: scores.numpy(), "ndarray"),
        (lambda ids, scores: scores.long(), "torch.int64"),
        (lambda ids, scores: scores > 0, "torch.bool"),
        (lambda ids, scores: scores.to(torch.complex64), "torch.complex64"),
        (lambda ids, scores: scores.to("meta"), "on meta"),
    ],
)
def test_a_processor_that_returns_something_else(given, came):
    refused(
        "logits processor",
        f"must return scores as it was given them, (1, {VOCABULARY})",
        came,
        logits_processors=[given],
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_processor_may_answer_in_another_precision(dtype):
    """As in transformers."""
    plain, ours = (
        specdec.generate(
            shared("llama_gqa"), ROW, max_new_tokens=6, logits_processors=[processor]
        ).tokens[0]
        for processor in (
            lambda ids, scores: scores.to(dtype).float(),
            lambda ids, scores: scores.to(dtype),
        )
    )
    assert torch.equal(plain, ours)


@pytest.mark.parametrize("value", ["no", 1, None])
def test_progress_is_a_yes_or_a_no(value):
    with pytest.raises(ValueError, match=rf"progress must be True or False, got {value!r}"):
        specdec.generate(shared("llama_gqa"), ROW, progress=value)


@pytest.mark.parametrize("chance", [Keyed, Coupled])
@pytest.mark.parametrize("seed", ["x", 1.5, True, None, 2**64])
def test_seeds_that_are_none(chance, seed):
    with pytest.raises(ValueError, match=r"seed must be an integer .*got"):
        chance(seed)


def test_a_model_where_a_drafter_is_expected():
    refused("the model LlamaForCausalLM", "'small_model', 'model'", drafter=shared("llama_gqa"))


@pytest.mark.parametrize("target", ["drafters.nothing.X", "drafters.ngram.X"])
def test_a_target_that_cannot_be_imported(target):
    refused(f"_target_ {target}", "cannot be imported", drafter={"_target_": target})


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (None, ("prompts must be", "NoneType")),
        (5, ("prompts must be", "int")),
        (b"abc", ("prompts must be", "bytes")),
        ({"input_ids": [[1, 2]]}, ("prompts must be", '"input_ids"')),
        ([None], ("prompt 0",)),
        (torch.ones(1, 3, dtype=torch.bool), ("torch.bool", "integer ids")),
        (torch.ones(1, 3, dtype=torch.complex64), ("torch.complex64", "integer ids")),
        (np.ones(3), ("prompt 0", "integer ids")),
    ],
)
def test_prompts_of_other_kinds(prompts, words):
    refused(*words, prompts=prompts)


@pytest.mark.parametrize(
    "prompts",
    [
        np.array(ROW),
        [np.array(ROW)],
        [np.int64(token) for token in ROW],
        torch.tensor(ROW),
        tuple(ROW),
    ],
)
def test_ids_as_arrays(prompts):
    plain, ours = (
        specdec.generate(shared("llama_gqa"), form, max_new_tokens=4).tokens
        for form in (ROW, prompts)
    )
    assert torch.equal(plain[0], ours[0])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("model", {"dtype": "float16"}, ("dtype", "in memory")),
        ("model", {"device": "cpu"}, ("device", "in memory")),
        ("model", {"extra_layers": 1.5}, ("extra_layers", ">= 0", "1.5")),
        ("model", {"extra_layers": True}, ("extra_layers", ">= 0", "True")),
        ("demo-draft", {"device": "nowhere"}, ("cannot be moved", "'nowhere'")),
        ("tuple of one", {}, ("(model, tokenizer)", "LlamaForCausalLM")),
        ("tuple of text", {}, ("(model, tokenizer)", "str")),
    ],
)
def test_loading_with_what_does_not_fit(name, options, words):
    model = shared("llama_gqa")
    what = {"model": model, "tuple of one": (model,), "tuple of text": (model, "tokenizer")}.get(
        name, name
    )
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
        specdec.load(what, **options)


def test_stop_strings_without_a_tokenizer():
    refused("stop strings need a tokenizer", "(model, tokenizer)", stop="end")


@pytest.mark.parametrize("call", [specdec.generate, specdec.stream])
def test_an_unknown_option(call):
    with pytest.raises(TypeError, match=r"no argument 'temprature'; did you mean 'temperature'\?"):
        call(shared("llama_gqa"), ROW, temprature=1.0)


def test_a_seed_beside_a_chance():
    refused("seed=3", "Keyed", "were both given", seed=3, chance=Keyed(1))


def test_a_lone_surrogate_in_a_prompt():
    target = specdec.load("demo")
    refused(
        "prompt 1",
        "half of a surrogate pair",
        "character 4",
        prompts=["fine", "def \ud800"],
        target=target,
    )


def test_a_stream_refuses_bad_input_at_the_call():
    with pytest.raises(ValueError, match="max_new_tokens must be an integer >= 1"):
        specdec.stream(shared("llama_gqa"), ROW, max_new_tokens=0)


@pytest.mark.parametrize("seats", [0, -1, 1.5, True, "8"])
def test_seats_that_are_none(seats):
    refused("seats must be an integer >= 1", repr(seats), seats=seats)


# ----------------------------------------------------------------------------------------- plug-ins


@pytest.mark.parametrize(
    ("group", "wrong", "meant"), [("drafter", "ngrm", "ngram"), ("verifier", "gredy", "greedy")]
)
def test_unknown_names_with_a_suggestion(group, wrong, meant):
    refused(f"unknown {group} {wrong!r}", f"did you mean {meant!r}?", "There are", **{group: wrong})


def test_an_unknown_name_like_no_other():
    assert "did you mean" not in refused("unknown drafter 'qqqqqqq'", "ngram", drafter="qqqqqqq")


def test_unknown_arguments_of_a_plugin():
    """With the nearest one, where there is one, and all that there are."""
    said = ("'lenght'", "did you mean 'length'?", "max_ngram, length, tree")
    refused("drafter ngram has no argument", *said, drafter={"name": "ngram", "lenght": 3})
    refused("'depht'", "did you mean 'depth'?", "stop", drafter={"name": "small_model", "depht": 3})
    refused(
        "verifier lenient has no argument",
        "'lenience'?",
        verifier={"name": "lenient", "lenince": 0.9},
    )
    message = refused(
        "drafter none has no argument 'zzz'. Its arguments: none",
        drafter={"name": "none", "zzz": 1},
    )
    assert "did you mean" not in message


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system [ls]",
        "!!python/name:os.system",
        "[1",
        "{a: b",
        "!unknown 3",
    ],
)
def test_a_value_that_is_no_plain_yaml_is_one_line(value, capsys):
    assert main(["text", "--drafter", f"ngram,length={value}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("specdec: --drafter")
    assert "length is no plain YAML value" in line


def test_unknown_arguments_where_a_plugin_makes_itself_small():
    """As certificates do, by `tiny`, which takes any argument."""
    settings = {"name": "eagle", "dept": 2}
    with pytest.raises(
        ValueError, match=r"drafter eagle has no argument 'dept'; did you mean 'depth'\?"
    ):
        make(settings, KNOWN)()


def test_targets_outside_the_allowed_packages():
    refused("os.system", "SPECDEC_ALLOW", drafter={"_target_": "os.system"})
    refused("_target_", drafter={"length": 3})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"depth": 0}, ("depth", ">= 1", "0")),
        ({"branching": 0}, ("branching", ">= 1", "0")),
        ({"depth": 3, "branching": [2, 1]}, ("branching", "3 depths", "[2, 1]")),
        ({"draw": "wur"}, ("draw", "wor", "'wur'")),
        ({"draw": "ranked"}, ("nodes >= depth", "None")),
        ({"nodes": 5}, ("nodes is for", "ranked")),
        ({"nodes": "9", "draw": "ranked"}, ("nodes must be an integer", "'9'")),
        ({"nodes": 9.5, "draw": "ranked"}, ("nodes must be an integer", "9.5")),
        ({"branching": 1.5}, ("branching", "1.5")),
        ({"branching": None}, ("branching", "None")),
    ],
)
def test_settings_of_small_model(settings, words):
    refused(*words, drafter={"name": "small_model", "model": shared("llama_gqa"), **settings})


HUGE = 10**9


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "small_model", "depth": HUGE},
        {"name": "small_model", "depth": 40, "branching": 2},
        {"name": "small_model", "depth": 2, "branching": HUGE},
        {"name": "small_model", "depth": 2, "branching": [2, HUGE]},
        {"name": "small_model", "depth": 4, "draw": "ranked", "nodes": HUGE},
        {"name": "small_model", "depth": 4, "draw": "ranked", "nodes": 8, "branching": HUGE},
        {"name": "small_model", "depth": 4, "draw": "adaptive", "nodes": HUGE},
        {"name": "ngram", "length": HUGE},
        {"name": "ngram", "max_ngram": HUGE},
        {"name": "medusa", "nodes": HUGE},
        {"name": "medusa", "branching": [HUGE]},
        {"name": "medusa", "branching": [64, 64, 64]},
        {"name": "eagle", "depth": HUGE},
        {"name": "eagle", "depth": HUGE, "draw": "static"},
        {"name": "eagle", "draw": "static", "nodes": HUGE},
        {"name": "early_exit", "depth": HUGE},
        {"name": "layer_skip", "depth": HUGE},
    ],
)
def test_sizes_that_no_pass_could_score_are_refused_at_once(settings):
    own = {
        "small_model": {"model": shared("llama_gqa")},
        "medusa": {"heads": head("medusa", lm("llama_gqa"))},
    }
    own["eagle"] = {"heads": head("eagle", lm("llama_gqa"))}
    began = time.monotonic()
    assert re.search(
        r"at most|more than|<= ", refused(drafter={**own.get(settings["name"], {}), **settings})
    )
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "settings",
    [{"max_ngram": 0}, {"length": 0}, {"length": "3"}, {"length": 2.5}, {"max_ngram": None}],
)
def test_settings_of_ngram(settings):
    ((name, value),) = settings.items()
    refused(f"{name} must be an integer >= 1", repr(value), drafter={"name": "ngram", **settings})


def test_a_switch_of_ngram():
    refused("tree must be True or False", "'no'", drafter={"name": "ngram", "tree": "no"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nodes": "x"}, ("nodes must be an integer >= 1", "'x'")),
        ({"nodes": 2.5}, ("nodes must be an integer >= 1", "2.5")),
        ({"tree": [0]}, ("list of rank paths", "[0]")),
        ({"tree": 3}, ("list of rank paths", "3")),
        ({"branching": 2}, ("one per depth", "2")),
        ({"heads": 3}, ("a folder or MedusaHeads", "int")),
        ({"heads": None}, ("a folder or MedusaHeads", "NoneType")),
        ({"name": "early_exit", "exit": 2}, ("a folder or ExitAdapter", "MedusaHeads")),
        ({"name": "eagle"}, ("a folder or EagleHead", "MedusaHeads")),
        (
            {"name": "layer_skip", "skip": {"layers": 3, "attention": 1, "mlp": []}, "heads": ...},
            ("lists of layer", "1"),
        ),
    ],
)
def test_settings_of_drafters_with_heads_or_parts(settings, words):
    drafter = {"name": "medusa", "heads": head("medusa", lm("llama_gqa")), **settings}
    refused(*words, drafter={key: value for key, value in drafter.items() if value is not ...})


def test_greedy_above_temperature_0():
    refused(
        "'greedy'",
        "temperature 0",
        "0.7",
        "'naive' or 'auto'",
        error=Refused,
        verifier="greedy",
        temperature=0.7,
    )


def test_a_draft_model_with_another_vocabulary():
    small = TableModel({(): [1, 1, 1]})
    refused(
        "vocabulary of 3 tokens",
        str(VOCABULARY),
        "target's tokenizer",
        drafter={"name": "small_model", "model": small},
    )


CONTRACT = {  # what each rule judges at temperature 1: sibling laws of chains, of trees
    "naive": ("det wor wr hub", "det wor wr hub"),
    "token": ("det wor wr", ""),
    "block": ("det wor wr", ""),
    "rrs_wor": ("det wor", "det wor"),
    "rrs_wr": ("det wr", "det wr"),
    "traversal": ("det wor wr", "det wor wr"),
    "kseq": ("wr", "wr"),
    "is2": ("wr", "wr"),
    "ot": ("wor wr", "wor wr"),
    "hub": ("hub", "hub"),
}


@pytest.mark.parametrize("rule", [rule for rule in CONTRACT if rule in rules()])
@pytest.mark.parametrize(("place", "branching"), [(0, 1), (1, 2)])
def test_the_contract(rule, place, branching):
    drawn = {"det": "topk", "wor": "wor", "wr": "wr", "hub": "hub"}
    for law, draw in drawn.items():
        drafter = make(
            {"name": "small_model", "depth": 2, "branching": branching, "draw": draw}, KNOWN
        )()
        options = {"drafter": drafter, "verifier": rule, "temperature": 1.0, "max_new_tokens": 4}
        if law in CONTRACT[rule][place].split():
            specdec.generate(KNOWN.target, [0], **options)
        else:
            refused(
                f"verifier {rule!r}",
                "drafter 'small_model'",
                error=Refused,
                target=KNOWN.target,
                prompts=[0],
                **options,
            )


def test_rules_that_need_a_fixed_width():
    adaptive = {"name": "small_model", "depth": 2, "draw": "adaptive", "nodes": 3}
    options = {"target": KNOWN.target, "prompts": [0], "temperature": 1.0, "error": Refused}
    if "ot" in rules():
        refused(
            "'ot'",
            "small_model",
            "fixed",
            drafter=make(adaptive, KNOWN)(),
            verifier="ot",
            **options,
        )
    refused("'hub'", "WOR", "HUB", drafter=make(adaptive, KNOWN)(), verifier="hub", **options)
    for rule, law in (("kseq", "WR"), ("is2", "WR"), ("ot", "WR"), ("hub", "HUB")):
        drafter = Says(lambda state: TokenTree.root(state.roots), law=SiblingLaw[law])
        refused(f"'{rule}'", "fixed_width", drafter=drafter, verifier=rule, **options)


@pytest.mark.parametrize("rule", [rule for rule in rules() if rule not in ("naive", "greedy")])
def test_coupled_chance_with_another_rule(rule):
    drafter = next((one for one, other in pairs() if other == rule), None)
    assert drafter is not None, f"no drafter's trees are judged by {rule}"
    for chance in (Coupled(0),):
        message = refused(
            repr(rule),
            error=Refused,
            target=KNOWN.target,
            prompts=[0],
            drafter=make(drafter, KNOWN)(),
            verifier=rule,
            temperature=1.0,
            chance=chance,
            allow_lossy=True,
        )
        assert "coupled" in message
        assert "'naive'" in message


@pytest.mark.parametrize("rule", [rule for rule in rules() if not build("verifier", rule).lossless])
def test_a_lossy_rule_without_permission(rule):
    refused(repr(rule), "lossy", "allow_lossy=True", error=Refused, verifier=rule, temperature=1.0)


def test_an_oracle_for_small_vocabularies():
    for rule in (rule for rule in rules() if build("verifier", rule).max_vocabulary):
        drafter = {"name": "small_model", "model": shared("llama_gqa"), "draw": "wr"}
        refused(
            repr(rule),
            "vocabular",
            str(VOCABULARY),
            error=Refused,
            drafter=drafter,
            verifier=rule,
            temperature=1.0,
        )


def test_a_refused_pair_leaves_nothing_behind():
    """The next call with the same objects works."""
    target, drafter = KNOWN.target, make(drafters()[-1], KNOWN)()
    with pytest.raises(Refused):
        specdec.generate(target, [0], drafter=drafter, verifier="greedy", temperature=1.0)
    assert (
        len(
            specdec.generate(
                target, [0], drafter=drafter, temperature=1.0, max_new_tokens=5
            ).tokens[0]
        )
        == 5
    )


# ---------------------------------------------------------------------------------- broken drafters


class Broken(Drafter):
    """Returns whatever tree it was given."""

    max_nodes = 4

    def __init__(self, parents, tokens, law=SiblingLaw.DET, q=None, declared=None):
        self.law = declared or law
        self.make = lambda roots: TokenTree(
            torch.tensor([[int(roots[0]), *tokens]]), torch.tensor([parents]), law, q
        )

    def propose(self, state, chance) -> TokenTree:
        return self.make(state.roots)


def law(*rows: list[float]) -> torch.Tensor:
    """q of a tree of three nodes over three tokens."""
    return torch.tensor([[*rows, *[[0.0, 0.0, 0.0]] * (3 - len(rows))]], dtype=torch.float64)


EVEN = [1 / 3, 1 / 3, 1 / 3]


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (([-1, 2, 0], [0, 1]), ("earlier node", "no parent after its child")),
        (([-1, 2, 1], [0, 1]), ("no cycles",)),
        (([-1, 0, 0], [1, 1], SiblingLaw.WOR, law(EVEN)), ("two siblings carry one token", "WOR")),
        (
            ([-1, 0, 1], [1, 0], SiblingLaw.WR, law([0.5, 0.0, 0.5], EVEN)),
            ("q gives a drawn token probability 0", "sampled from"),
        ),
        (([-1, 0, 1], [1, 0], SiblingLaw.WR, law([float("nan")] * 3, EVEN)), ("NaN", "q")),
        (([-1, 0, 1], [1, 0], SiblingLaw.WOR, law([0.2, 0.2, 0.2], EVEN)), ("sum to 1",)),
        (([-1, 0, 1], [1, 0], SiblingLaw.WOR, law([0.3, 0.3, 0.409], EVEN)), ("sum to 1",)),
        (([-1, 0, 1], [1, 0], SiblingLaw.WOR, law([0.5, 0.7, -0.2], EVEN)), ("is negative",)),
        (([-1, 0, 1], [1, 3]), ("outside the vocabulary",)),
        (([-1, 0, 1], [1, -1]), ("outside the vocabulary",)),
        (([-1, 0, 1], [1, 10**12]), ("outside the vocabulary",)),
        (([-1, 0, 0], [1, 2], SiblingLaw.WOR, None), ("must carry q",)),
        (([-1, 0, 0, 0, 0], [0, 1, 2, 2]), ("5 nodes", "max_nodes=4")),
        (
            ([-1, 0, 1], [1, 0], SiblingLaw.WR, law(EVEN, EVEN), SiblingLaw.DET),
            ("declares siblings DET", "WR tree"),
        ),
    ],
)
def test_a_drafter_that_returns_a_malformed_tree(tree, words):
    for temperature in (0.0, 1.0):
        refused(
            *words, target=KNOWN.target, prompts=[0], drafter=Broken(*tree), temperature=temperature
        )


@pytest.mark.parametrize("beyond", [0, 7])
def test_a_token_past_the_vocabulary_is_reported_before_it_is_looked_up(beyond):
    """An embedding would end the process, or the device."""
    model = shared("llama_gqa")
    vocabulary = model.config.vocab_size
    refused(
        "outside the vocabulary",
        target=model,
        prompts=[0],
        drafter=Broken([-1, 0, 1], [vocabulary + beyond, 1]),
    )


def test_a_tree_past_the_wanted_length():
    refused(
        "deeper than room - 1",
        "row 0",
        target=KNOWN.target,
        prompts=[0],
        drafter=Broken([-1, 0, 1], [1, 0]),
        max_new_tokens=2,
    )
    deep = {"target": KNOWN.target, "prompts": [0], "drafter": Broken([-1, 0], [1])}
    refused("deeper than room - 1", max_new_tokens=1, **deep)


def test_the_row_and_the_drafter_are_named():
    message = refused(
        "request 17",
        target=KNOWN.target,
        prompts=[0],
        drafter=Broken([-1, 0, 1], [1, 3]),
        request_ids=[17],
        temperature=1.0,
    )
    assert "row 0" in message
    assert "drafter 'Broken'" in message  # its class, since no YAML names it


class Says(Drafter):
    """Answers with whatever `answer(state)` gives."""

    max_nodes = 4

    def __init__(self, answer, **declared):
        self.answer = answer
        for name, value in declared.items():
            setattr(self, name, value)

    def propose(self, state, chance):
        return self.answer(state)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"law": "wor"}, "law must be a specdec.SiblingLaw, got 'wor'"),
        ({"law": None}, "law must be a specdec.SiblingLaw, got None"),
        ({"max_nodes": None}, "max_nodes (root included) must be an integer >= 1, got None"),
        ({"max_nodes": "4"}, "max_nodes (root included) must be an integer >= 1, got '4'"),
        ({"chain": "no"}, "chain must be True or False, got 'no'"),
        ({"fixed_width": 1}, "fixed_width must be True or False, got 1"),
    ],
)
def test_what_no_drafter_can_declare(declared, said):
    drafter = Says(lambda state: TokenTree.root(state.roots), **declared)
    refused(f"drafter 'Says': {said}", target=KNOWN.target, prompts=[0], drafter=drafter)


def tree_of(state, parents, tokens, **options):
    return TokenTree(
        torch.tensor([[int(state.roots[0]), *tokens]]), torch.tensor([parents]), **options
    )


def another_root(state):
    return TokenTree.chain((state.roots[:, None] + 1).repeat(1, 2) % 3, None)


def written(state):
    state.tokens[0, 0] = 2
    return TokenTree.root(state.roots)


THIRDS = torch.full((1, 3, 3), 1 / 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("answer", "declared", "words"),
    [
        (lambda state: None, {}, ("returned NoneType", "specdec.TokenTree")),
        (lambda state: [[0, 1]], {}, ("returned list",)),
        (another_root, {}, ("column 0 of its tokens is not the root",)),
        (written, {}, ("has written into state.tokens", "row 0")),
        (
            lambda state: tree_of(state, [-1, 0, 1], [1, 0], depth=1),
            {},
            ("the tree is deeper than its `depth`",),
        ),
        (
            lambda state: tree_of(state, [-1, 0, 0], [1, 2]),
            {"chain": True},
            ("no chain", "(chain)"),
        ),
        (
            lambda state: TokenTree(state.roots[:, None].double(), [[-1]]),
            {},
            ("torch.float64", "torch.long"),
        ),
        (
            lambda state: TokenTree(state.roots[:, None].int(), [[-1]]),
            {},
            ("torch.int32", "torch.long"),
        ),
        (
            lambda state: TokenTree.root(state.roots.repeat(2)),
            {},
            ("trees for 2 rows, there are 1",),
        ),
        (lambda state: TokenTree.root(state.roots.to("meta")), {}, ("are on meta", "cpu")),
        (lambda state: tree_of(state, [-1, 7], [1]), {}, ("parent must be an earlier node",)),
        (
            lambda state: TokenTree.chain(
                state.roots[:, None].repeat(1, 2), None, SiblingLaw.WR, THIRDS[:, :2, :2]
            ),
            {"law": SiblingLaw.WR},
            ("q over 2 tokens", "vocabulary has 3"),
        ),
    ],
)
def test_a_drafter_that_breaks_its_contract(answer, declared, words):
    refused(
        "drafter 'Says'", *words, target=KNOWN.target, prompts=[0], drafter=Says(answer, **declared)
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((None, [[-1]]), "tokens must be a Tensor, got NoneType"),
        (([[1]], [[-1]]), "tokens must be a Tensor, got list"),
        ((torch.ones(1, 2).long(), [[-1, 0]], "wr"), "law must be a SiblingLaw, got str"),
        (
            (torch.ones(1, 2).long(), [[-1, 0]], SiblingLaw.WR, [[0.5]]),
            "q must be (rows, nodes, vocabulary) = (1, 2, V), got list",
        ),
        (
            (torch.ones(1, 2).long(), [[-1, 0]], SiblingLaw.WR, torch.ones(1, 1, 3)),
            "q must be (rows, nodes, vocabulary) = (1, 2, V), got (1, 1, 3)",
        ),
        ((torch.ones(2).long(), torch.ones(2).long()), "parents must be (rows, nodes), got (2,)"),
        ((torch.ones(1, 2).long(), [[-1]]), "a tree needs tokens and parents of one shape"),
    ],
)
def test_a_tree_of_what_is_no_tree(arguments, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        TokenTree(*arguments)


def test_a_width_that_is_declared_fixed_and_is_not():
    """Seen over rounds: two children at first, then one, though q has tokens left."""
    widths = iter([2, 1, 1, 1, 1, 1, 1, 1])

    def answer(state):
        k = next(widths)
        tokens, parents = [[1, 2], [1, 0]][k == 1], [-1, 0, 0 if k == 2 else -1]
        return tree_of(state, parents, tokens, law=SiblingLaw.WOR, q=THIRDS)

    drafter = Says(answer, law=SiblingLaw.WOR, fixed_width=True)
    options = {"target": KNOWN.target, "prompts": [0], "drafter": drafter, "temperature": 1.0}
    with pytest.raises(ValueError, match="its width varies, and the drafter declares it fixed"):
        specdec.generate(
            options.pop("target"),
            options.pop("prompts"),
            verifier="ot",
            max_new_tokens=8,
            **options,
        )


class Wanders(Verifier):
    """Accepts whatever it was told to."""

    laws = frozenset(SiblingLaw)

    def __init__(self, path, accepted, bonus=0):
        self.answer = path, accepted, bonus

    def verify(self, trees, p, chance):
        path, accepted, bonus = self.answer
        return Verdict(torch.tensor([path]), torch.tensor([accepted]), torch.tensor([bonus]))


@pytest.mark.parametrize(
    ("path", "accepted", "bonus", "words"),
    [
        ([2, -1], 1, 0, ("the path [2, -1]", "no path from the root")),  # node 2 is node 1's child
        ([1, 3], 2, 0, ("the path [1, 3]",)),  # there is no node 3
        ([1, 2], 1, 0, ("num_accepted=1",)),
        ([-1, 2], 1, 0, ("the path [-1, 2]",)),
        ([0, -1], 1, 0, ("the path [0, -1]",)),
        ([1, -1], 1, 3, ("bonus token 3", "vocabulary of 3")),
        ([1, -1], 1, -1, ("bonus token -1",)),
    ],
)
def test_a_verifier_that_breaks_its_contract(path, accepted, bonus, words):
    drafter = Says(lambda state: tree_of(state, [-1, 0, 1], [1, 2]))
    rule = Wanders(path, accepted, bonus)
    refused(
        "verifier 'Wanders'",
        *words,
        target=KNOWN.target,
        prompts=[0],
        drafter=drafter,
        verifier=rule,
    )


def verdict(path=((1, -1),), accepted=(1,), bonus=(0,), **counts):
    """A sound one, but for what is given."""
    pieces = (torch.tensor(piece) for piece in (path, accepted, bonus))
    return Verdict(*pieces, counts)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda: None, "NoneType, expected a specdec.Verdict"),
        (lambda: (1, 2, 3), "tuple, expected a specdec.Verdict"),
        (lambda: Verdict([[1, -1]], [1], [0]), "list as path, expected a tensor (1, depth) on cpu"),
        (lambda: verdict(path=((1.0, -1.0),)), "path of torch.float32, expected torch.long"),
        (lambda: verdict(accepted=(1.0,)), "num_accepted of torch.float32"),
        (lambda: verdict(bonus=(0.0,)), "bonus of torch.float32"),
        (lambda: verdict(path=((1, -1), (1, -1))), "a tensor (2, 2) on cpu as path"),
        (lambda: verdict(path=(1,)), "a tensor (1,) on cpu as path"),
        (lambda: verdict(accepted=1), "a tensor () on cpu as num_accepted, expected a tensor (1,)"),
        (lambda: verdict(bonus=((0,),)), "a tensor (1, 1) on cpu as bonus"),
        (lambda: verdict(tried=3), "int as counts['tried'], expected a tensor (1,) on cpu"),
        (lambda: verdict(tried=torch.ones(2)), "a tensor (2,) on cpu as counts['tried']"),
        (
            lambda: Verdict(*(torch.ones(1, *more).long().to("meta") for more in ((2,), (), ()))),
            "a tensor (1, 2) on meta as path, expected a tensor (1, depth) on cpu",
        ),
    ],
)
def test_a_verifier_that_returns_no_verdict(answer, said):
    rule = Wanders([1], 1)
    rule.verify = lambda trees, p, chance: answer()
    drafter = Says(lambda state: tree_of(state, [-1, 0, 1], [1, 2]))
    refused(
        f"verifier 'Wanders' returned {said}",
        target=KNOWN.target,
        prompts=[0],
        drafter=drafter,
        verifier=rule,
    )


# ----------------------------------------------------------------------------------- broken targets


class Sick(TableModel):
    """Its logits are no law once `place` tokens have been committed in `row`."""

    def __init__(self, value: float, row: int, place: int) -> None:
        super().__init__(KNOWN.p)
        self.value, self.row, self.place = value, row, place

    def open(self, rows, slots):
        return SickSession(self, rows)


class SickSession(TableSession):
    def score(self, tree, start=0, taps=()):
        scores = super().score(tree, start, taps)
        if len(self._texts[self.model.row]) + 1 >= self.model.place:
            scores.logits[self.model.row] = self.model.value
        return scores


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "drafter", ["none", "ngram", {"name": "small_model", "model": KNOWN.draft}]
)
def test_logits_that_are_no_law(value, temperature, drafter):
    refused(
        "logits in row 1",
        "request 6",
        "after position 4",
        "NaN",
        "-inf",
        "dtype",
        "processors",
        target=Sick(value, 1, 5),
        prompts=[[0, 1], [1, 2, 0, 1, 2]],
        drafter=drafter,
        temperature=temperature,
        request_ids=[5, 6],
    )


def test_a_processor_that_leaves_no_token():
    def nothing(ids, scores):
        return torch.full_like(scores, -torch.inf)

    for temperature in (0.0, 1.0):
        refused(
            "logits in row 0",
            "-inf",
            "processors",
            temperature=temperature,
            logits_processors=[nothing],
        )


# ------------------------------------------------------------------------------------ model folders


def test_a_folder_without_weights(tmp_path):
    fresh("llama_gqa").config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no weights \(\*\.safetensors\)"):
        specdec.load(tmp_path)


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json.*save_pretrained"):
        specdec.load(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_instead_of_safetensors(tmp_path, name):
    model = fresh("llama_gqa")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / name)
    with pytest.raises(ValueError, match=rf"pickle \({name}\).*can run code.*save_pretrained"):
        specdec.load(tmp_path)


def test_a_folder_that_is_not_there():
    with pytest.raises(ValueError, match=r"no model folder at /nowhere/at/all"):
        specdec.load("/nowhere/at/all")


def test_a_folder_of_an_encoder_decoder(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "t5", "is_encoder_decoder": True})
    )
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="encoder-decoder"):
        specdec.load(tmp_path)


def test_weights_that_are_not_a_model(tmp_path):
    with pytest.raises(ValueError, match="got Linear"):
        specdec.load(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="got int"):
        specdec.load(3)


def test_an_unknown_dtype(tmp_path):
    fresh("llama_gqa").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"dtype must be.*'float31'"):
        specdec.load(tmp_path, dtype="float31")
    assert specdec.load(tmp_path, dtype="bfloat16", device="cpu").dtype == torch.bfloat16


def test_negative_extra_layers():
    with pytest.raises(ValueError, match="extra_layers must be an integer >= 0, got -1"):
        specdec.load(shared("llama_gqa"), extra_layers=-1)


def test_a_saved_model_is_the_model(tmp_path):
    """The other side of the refusals: what save_pretrained writes loads, and says the same."""
    model = fresh("llama_gqa")
    model.save_pretrained(tmp_path)
    out = [
        specdec.generate(target, ROW, max_new_tokens=6).tokens[0].tolist()
        for target in (model, str(tmp_path), tmp_path)
    ]
    assert out[0] == out[1] == out[2]


@pytest.mark.parametrize(("drafter", "rule"), pairs(), ids=title)
def test_a_target_that_says_no_leaves_the_drafter_usable(drafter, rule):
    built = make(drafter, KNOWN)()
    options = {
        "drafter": built,
        "verifier": rule,
        "temperature": 1.0,
        "allow_lossy": True,
        "max_new_tokens": 6,
    }
    with pytest.raises(ValueError, match="NaN"):
        specdec.generate(Sick(float("nan"), 0, 3), [[0, 1, 2]], **options)
    built.forget()  # what it may have learnt until then
    again = specdec.generate(KNOWN.target, [[0]], chance=Keyed(5), **options)
    new = specdec.generate(
        KNOWN.target, [[0]], chance=Keyed(5), **{**options, "drafter": make(drafter, KNOWN)()}
    )
    assert again.tokens[0].tolist() == new.tokens[0].tolist()
