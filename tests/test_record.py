"""Recorded trees: replays are the live run at temperature 0, samples of its rounds above it, and
what is cut off is bounded. Records come back as they were written, or not at all."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import specdec
from experiments import record as program
from experiments import replay as replays
from experiments.records import folder as files
from experiments.records import laws as cuts
from experiments.records import recording, replaying, shapes
from experiments.records.estimate import Way, jumped
from experiments.records.recording import Recording, gathered
from experiments.records.rounds import Judge
from experiments.records.starts import Conditional
from experiments.records.wide import Wide, largest
from specdec.drafting.rank_tree import RankTree
from specdec.drafting.shape import Shape
from specdec.pairing import name_of
from specdec.plugins import build
from specdec.tree import SiblingLaw
from tests.exact import KNOWN, Toy, exact, table
from tests.models import prompts, shared, similar

TARGET = specdec.load(shared("llama_gqa", torch.float64))
DRAFT = specdec.load(similar(shared("llama_gqa", torch.float64)))
PROMPTS = prompts(9, 5, 12, 3)
TOKENS = 24


def written(
    place: Path,
    shape: dict,
    temperature: float,
    given: list[list[int]] = PROMPTS,
    tokens: int = TOKENS,
    target=TARGET,
    draft=DRAFT,
    top: int = 128,
    every: int = 1,
    sampling: dict | None = None,
    ids: list[int] | None = None,
    name: str = "small_model",
) -> Path:
    """A record, made as the program does but from token ids."""
    folder = place / name
    drafter = Wide(build("drafter", {"name": "small_model", "model": draft, **shape}), every)
    files.begin(folder, {"every": every})
    options = {"temperature": temperature, **(sampling or {})}
    way = Recording(target, drafter, options, top, folder)
    ids = list(range(len(given))) if ids is None else ids
    sample = way(given, ids, tokens)
    texts = [
        files.Text(number, 0, "all", list(row), out)
        for number, row, out in zip(ids, given, sample.tokens, strict=True)
    ]
    files.write(folder, 0, gathered(texts, ids, way.noted))
    facts = {
        "batches": 1,
        "bytes": 0,
        "drafter": "small_model",
        "shape": shapes.described(drafter.inner.shape),
        "temperature": temperature,
        "vocabulary": target.vocabulary,
    }
    files.finish(folder, facts)
    return folder


def live(shape: dict, rule: str, temperature: float, **options):
    drafter = build("drafter", {"name": "small_model", "model": DRAFT, **shape})
    return specdec.generate(
        TARGET,
        PROMPTS,
        drafter=drafter,
        verifier=rule,
        temperature=temperature,
        max_new_tokens=TOKENS,
        **options,
    )


# -------------------------------------------------------------------------------- temperature 0

WIDE = {"depth": 4, "branching": [3, 2, 2, 1]}
RANKED = {"depth": 4, "branching": 3, "draw": "ranked", "nodes": 24}
AT_ZERO = [
    (WIDE, {"depth": 4, "branching": 1}, "greedy"),
    (WIDE, {"depth": 4, "branching": 1}, "block"),
    (WIDE, {"depth": 2, "branching": 1}, "token"),
    (WIDE, {"depth": 3, "branching": [2, 2, 1]}, "naive"),
    (WIDE, {"depth": 3, "branching": [2, 2, 1]}, "traversal"),
    (WIDE, {"depth": 4, "branching": [3, 2, 2, 1]}, "rrs_wor"),
    (WIDE, {"depth": 3, "draw": "sequoia", "nodes": 5, "acceptance": [0.6, 0.3]}, "traversal"),
    (RANKED, {"depth": 4, "branching": 3, "draw": "ranked", "nodes": 24}, "greedy"),
    (RANKED, {"depth": 4, "branching": 3, "draw": "ranked", "nodes": 7}, "naive"),
    (RANKED, {"depth": 3, "branching": 3, "draw": "ranked", "nodes": 9}, "rrs_wr"),
    (RANKED, {"depth": 2, "branching": 3, "draw": "ranked", "nodes": 6}, "traversal"),
    (WIDE, {"depth": 1, "branching": 3, "draw": "topk"}, "greedy"),
]


@pytest.fixture(scope="module")
def greedy_records(tmp_path_factory):
    place = tmp_path_factory.mktemp("greedy")
    return {
        name: written(place, shape, 0.0, name=name)
        for name, shape in (("small_model", WIDE), ("ranked", RANKED))
    }


@pytest.mark.parametrize(("wide", "shape", "rule"), AT_ZERO)
def test_at_temperature_0_a_replay_is_the_live_run(wide, shape, rule, greedy_records):
    folder = greedy_records["ranked" if wide is RANKED else "small_model"]
    found = replaying.replay(str(folder), None, shape, rule)
    out = live(shape, rule, 0.0)
    assert [text.tokens for text in found.texts] == [row.tolist() for row in out.tokens]
    assert [len(one) for one in found.taken.texts] == out.report.rounds_per_row.tolist()
    assert found.tau.median == pytest.approx(out.report.tau, abs=1e-9)
    assert found.cut_off_bound == (found.tau.median, found.tau.median)
    names = ("offered", "reached", "accepted")
    assert found.taken.acceptance == {
        place: {name: getattr(cell, name) for name in names}
        for place, cell in out.report.acceptance.items()
    }


def test_a_record_decodes_as_plain_decoding_does(tmp_path):
    """Also where only some positions are recorded, and for a head that reads every state."""
    for number, (every, temperature) in enumerate(itertools.product((1, 3), (0.0, 1.0))):
        folder = written(tmp_path / str(number), WIDE, temperature, every=every)
        batch = files.read(folder, 0)
        plain = specdec.generate(
            TARGET,
            PROMPTS,
            drafter="none",
            verifier="greedy" if temperature == 0 else "naive",
            temperature=temperature,
            max_new_tokens=TOKENS,
        )
        assert [text.tokens for text in batch.texts] == [row.tolist() for row in plain.tokens]
        positions = np.unique(batch.nodes["position"])
        assert positions.tolist() == list(range(0, TOKENS, every))
        found = replaying.replay(str(folder), None, {"depth": 1, "branching": 1}, "auto")
        assert found.taken.rounds <= batch.trees


def test_heads_are_recorded_too(tmp_path):
    """A head reads the target's states of every round, also of those without a tree."""
    target = specdec.load("demo", dtype="float32")
    drafter = Wide(build("drafter", {"name": "eagle", "depth": 2, "branching": 2, "nodes": 6}), 2)
    way = Recording(target, drafter, {}, 128, tmp_path)
    ids = target.tokenizer("def read_csv(")["input_ids"]
    sample = way([ids], [0], 8)
    plain = specdec.generate(target, [ids], drafter="none", max_new_tokens=8)
    assert sample.tokens == [plain.tokens[0].tolist()]
    text = files.Text(0, 0, "all", ids, sample.tokens[0])
    batch = gathered([text], [0], way.noted)
    trees = shapes.WideTrees.of(batch.nodes, drafter.inner.shape)
    assert trees.position.tolist() == [0, 2, 4, 6]
    assert (trees.columns["parent"][:3] >= 0).sum(1).tolist() == [6, 6, 6]
    first = specdec.generate(
        target,
        [ids],
        drafter={"name": "eagle", "depth": 2, "branching": 2, "nodes": 4},
        max_new_tokens=8,
        trace=True,
    ).steps[0]
    assert first.nodes is not None
    best = trees.select(Shape(2, 2, "ranked", 4))
    tokens = trees.columns["token"][0][best.numbers[0]]
    assert tokens.tolist() == first.nodes.tokens[0].tolist()
    assert best.parents[0].tolist() == first.parents[0].tolist()


# --------------------------------------------------------------------- samples, above temperature 0

ROWS = 800
TABLES = [
    ({"depth": 2, "branching": [3, 2]}, {"depth": 2, "branching": 1}, "token"),
    ({"depth": 2, "branching": [3, 2]}, {"depth": 2, "branching": 1}, "block"),
    ({"depth": 2, "branching": [3, 2]}, {"depth": 2, "branching": [2, 1]}, "naive"),
    ({"depth": 2, "branching": [3, 2]}, {"depth": 2, "branching": [2, 1]}, "rrs_wor"),
    ({"depth": 2, "branching": [3, 2]}, {"depth": 2, "branching": [2, 1]}, "traversal"),
    ({"depth": 2, "branching": [3, 2]}, {"depth": 1, "branching": 2}, "ot"),
    (
        {"depth": 2, "branching": [3, 2]},
        {"depth": 2, "draw": "sequoia", "nodes": 3, "acceptance": [0.6, 0.3]},
        "traversal",
    ),
    ({"depth": 2, "branching": [3, 2], "draw": "wr"}, {"depth": 1, "branching": 2}, "kseq"),
    ({"depth": 2, "branching": [3, 2], "draw": "wr"}, {"depth": 2, "branching": [2, 1]}, "rrs_wr"),
    ({"depth": 2, "branching": [2, 1], "draw": "hub"}, {"depth": 1, "branching": 2}, "hub"),
    ({"depth": 2, "branching": 2, "draw": "topk"}, {"depth": 2, "branching": [2, 1]}, "traversal"),
    (
        {"depth": 2, "branching": 2, "draw": "ranked", "nodes": 6},
        {"depth": 2, "branching": 2, "draw": "ranked", "nodes": 3},
        "naive",
    ),
    ({"depth": 2, "draw": "adaptive", "nodes": 3}, {}, "traversal"),
]


@pytest.fixture(scope="module")
def table_records(tmp_path_factory):
    """Of thousands of rounds at one position: each request has its own random numbers."""
    place, made = tmp_path_factory.mktemp("tables"), {}

    def of(wide: dict) -> Path:
        key = json.dumps(wide)
        if key not in made:
            made[key] = written(
                place / str(len(made)),
                wide,
                1.0,
                [list(KNOWN.prompt)] * ROWS,
                tokens=3,
                target=KNOWN.target,
                draft=KNOWN.draft,
                every=3,
            )
        return made[key]

    return of


@pytest.mark.parametrize(("wide", "shape", "rule"), TABLES)
def test_rounds_have_the_expected_length(wide, shape, rule, table_records):
    """The mean number of accepted tokens against its exact value, outcome by outcome."""
    given = {**wide, **shape}
    if given.get("draw") == "sequoia":
        del given["branching"]
    drafter = build("drafter", {"name": "small_model", "model": KNOWN.draft, **given})
    expected = exact(KNOWN, lambda: drafter, rule, 3).accepted
    found = replaying.replay(str(table_records(wide)), None, shape, rule)
    accepted = np.array([one.path[0] >= 0 for one in found.taken.texts]).sum(1)
    assert len(accepted) == ROWS
    error = accepted.std() / ROWS**0.5
    assert abs(accepted.mean() - expected) < 4.5 * error + 1e-3
    assert found.taken.cut_off_mass < 1e-3


def test_first_siblings_are_a_sample_of_the_smaller_shape(table_records):
    """The first two of three siblings without replacement, against q drawn out."""
    batch = files.read(table_records({"depth": 2, "branching": [3, 2]}), 0)
    trees = shapes.WideTrees.of(batch.nodes, Shape(2, [3, 2]))
    selected = trees.select(Shape(1, 2, "wor"))
    tokens = np.take_along_axis(trees.columns["token"], selected.numbers, 1)[:, 1:]
    q = KNOWN.draft.law(()).numpy()
    for first, second in itertools.permutations(range(3), 2):
        wanted = q[first] * q[second] / (1 - q[first])
        share = ((tokens[:, 0] == first) & (tokens[:, 1] == second)).mean()
        assert abs(share - wanted) < 4.5 * (wanted * (1 - wanted) / ROWS) ** 0.5


def test_rounds_follow_one_another():
    assert jumped(np.arange(6), np.array([2, 9, 1, 3, 1, 1]), 6) == [0, 2, 3]
    assert jumped(np.arange(0, 6, 2), np.array([2, 1, 2]), 6) == [0, 1, 2]
    assert jumped(np.arange(3), np.array([1, 2, 1]), 3) == [0, 1]
    assert jumped(np.arange(0), np.arange(0), 0) == []


LONGER = Toy(table(4, 3, 5), table(4, 3, 6))
RUNS = [
    ({"depth": 2, "branching": 1}, "token", Way.WEIGHING),
    ({"depth": 2, "branching": 1}, "block", Way.WEIGHING),
    ({"depth": 2, "branching": [2, 1]}, "naive", Way.JUMPING),
    ({"depth": 2, "branching": [2, 1]}, "rrs_wor", Way.WEIGHING),
    ({"depth": 2, "branching": [3, 2]}, "traversal", Way.WEIGHING),
]
TEXTS, LONG = 500, 8


@pytest.fixture(scope="module")
def longer_record(tmp_path_factory):
    given = [[0]] * TEXTS
    place = tmp_path_factory.mktemp("longer")
    wide = {"depth": 2, "branching": [3, 2]}
    return written(place, wide, 1.0, given, LONG, LONGER.target, LONGER.draft)


@pytest.mark.parametrize(("shape", "rule", "way"), RUNS)
def test_above_temperature_0_a_replay_has_the_tau_of_live_runs(shape, rule, way, longer_record):
    """Over several rounds, which depend on one another."""
    found = replaying.replay(str(longer_record), None, shape, rule)
    assert found.way is way
    drafter = build("drafter", {"name": "small_model", "model": LONGER.draft, **shape})
    out = specdec.generate(
        LONGER.target,
        [[0]] * TEXTS,
        drafter=drafter,
        verifier=rule,
        temperature=1.0,
        max_new_tokens=LONG,
        seed=7,
    )
    rounds = out.report.rounds_per_row
    live = LONG / rounds.mean()
    noise = live * rounds.std() / rounds.mean() / TEXTS**0.5
    ends = found.tau.high - found.tau.low
    assert abs(found.tau.median - live) < 4 * (noise**2 + (ends / 3.9) ** 2) ** 0.5


def test_chances_of_a_round_given_its_text_have_the_right_mean(longer_record):
    """K_0(a), averaged over texts, is the chance that a tokens are accepted."""
    batch = files.read(longer_record, 0)
    trees = shapes.WideTrees.of(batch.nodes, Shape(2, [3, 2]))
    for branching, rule in (([2, 1], "traversal"), ([1, 1], "block"), ([2, 1], "rrs_wor")):
        judge = Judge(build("verifier", rule), SiblingLaw.WOR, False)
        frame = shapes.frame_of(Shape(2, branching))
        kernel = Conditional(batch, trees, frame, SiblingLaw.WOR, judge).kernel()
        accepted = judge(batch, trees, trees.select(Shape(2, branching))).accepted
        expected = accepted[trees.position == 0].mean()
        found = (kernel[trees.position == 0] * np.arange(3)).sum(1)
        assert abs(found.mean() - expected) < 4.5 * (found.std() + 1) / TEXTS**0.5


# ------------------------------------------------------------------------------- what is cut off


def cut_pair(seed: int) -> Toy:
    """Four tokens; a record that keeps two of them cuts much off."""
    return Toy(table(4, 1, seed), table(4, 1, seed + 100))


BOUNDED = [
    ({"depth": 2, "branching": 1}, "token"),
    ({"depth": 2, "branching": 1}, "block"),
    ({"depth": 2, "branching": [2, 1]}, "naive"),
    ({"depth": 2, "branching": [2, 1]}, "rrs_wor"),
    ({"depth": 2, "branching": [2, 1]}, "traversal"),
]


@pytest.mark.parametrize("seed", [1])
def test_the_bound_of_what_is_cut_off_holds(seed, tmp_path):
    toy, rows = cut_pair(seed), 800
    folder = written(
        tmp_path,
        {"depth": 2, "branching": [3, 1]},
        1.0,
        [[0]] * rows,
        tokens=3,
        target=toy.target,
        draft=toy.draft,
        top=2,
        every=3,
    )
    for shape, rule in BOUNDED:
        drafter = build("drafter", {"name": "small_model", "model": toy.draft, **shape})
        expected = 1 + exact(toy, lambda made=drafter: made, rule, 3).accepted
        found = replaying.replay(str(folder), None, shape, rule)
        low, high = (
            np.mean([one.kept[0] for one in taken.texts])
            for taken in (found.beside or found.taken, found.taken)
        )
        error = np.std([one.kept[0] for one in found.taken.texts]) / rows**0.5
        assert found.taken.cut_off_mass > 0.05 or found.way is Way.JUMPING
        assert min(low, high) - 4.5 * error < expected < max(low, high) + 4.5 * error, rule


def test_cut_off_mass_lies_under_or_beside():
    """For any a and b, what is left of a p - b q is between what the two ways leave."""
    draw = random.Random(0)
    for _ in range(200):
        p, q = (torch.tensor([draw.random() ** 3 for _ in range(5)]) for _ in range(2))
        a, b = draw.random() * 2, draw.random() * 2
        whole = (a * p - b * q).clamp(min=0).sum()
        assert (a * p.sum() - b * q.sum()).clamp(min=0) <= whole + 1e-6
        assert whole <= a * p.sum() + 1e-6


def test_recorded_laws_sum_to_one():
    p, q = (torch.rand(4, 300, dtype=torch.float64).softmax(-1) for _ in range(2))
    found = largest(p, q, 128)
    assert found["law_p"].dtype == torch.float16
    for name in "pq":
        whole = found[f"law_{name}"].double().sum(1) + found[f"rest_{name}"].double()
        assert torch.allclose(whole, torch.ones(4, dtype=torch.float64), atol=1e-6)
    kept = torch.maximum(p, q).gather(1, found["law_tokens"].long())
    assert (kept.amin(1) >= torch.maximum(p, q).topk(128, -1).values[:, -1]).all()


def test_children_beyond_the_recorded_tokens_keep_their_p_and_q(tmp_path):
    toy = cut_pair(1)
    folder = written(
        tmp_path, {"depth": 1, "branching": 3}, 1.0, [[0]] * 50, 1 + 1, toy.target, toy.draft, 1
    )
    batch = files.read(folder, 0)
    trees = shapes.WideTrees.of(batch.nodes, Shape(1, 3))
    selected = trees.select(Shape(1, 3))
    for cut in cuts.Cut:
        nodes = cuts.nodes_of(trees, selected).rows(slice(0, 50))
        given = cuts.alphabets(nodes, batch.laws, cut)
        mine = trees.position[:50] == 0
        tokens = torch.from_numpy(trees.columns["token"][:50].astype(np.int64))
        for name, model in (("p", toy.target), ("q", toy.draft)):
            law = getattr(given, name)[:, 0].gather(1, given.tokens[:, 1:])
            wanted = model.law(())[tokens[:, 1:]].float()
            assert torch.allclose(law[mine], wanted[mine], atol=2e-3)


# -------------------------------------------------------------------------------- files, bad input


def test_a_record_comes_back_as_it_was_written(greedy_records, tmp_path):
    batch = files.read(greedy_records["small_model"], 0)
    files.write(tmp_path, 3, batch)
    again = files.read(tmp_path, 3)
    assert again.texts == batch.texts
    for name, column in batch.nodes.items():
        assert (again.nodes[name] == column).all()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".parquet", ".parquet"]
    folder = written(tmp_path / "warm", WIDE, 1.0)
    warm = files.read(folder, 0)
    assert set(warm.laws) == set(files.LAWS)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".parquet", ".safetensors"}
    inner = np.unique(warm.nodes["law"])
    assert inner.tolist() == list(range(-1, len(warm.laws["law_p"])))


def test_the_size_is_told_before_anything_is_decoded(tmp_path):
    shape = Shape(4, [3, 2, 2, 1])
    assert recording.inner_nodes(shape) == 1 + 3 + 6 + 12
    assert recording.inner_nodes(Shape(2, 3, "ranked", 9)) == 4
    folder = written(tmp_path, {"depth": 4, "branching": [3, 2, 2, 1]}, 1.0)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".json")
    most = recording.most_bytes(shape, len(PROMPTS), TOKENS, 1, TARGET.vocabulary, False)
    assert 0.2 * most < size < 1.1 * most + 20_000
    with pytest.raises(ValueError, match="free"):
        files.check_space(tmp_path / "new" / "folder", 1 << 60)


ASKED = [
    ({"depth": 5}, "deeper than the record, whose trees have 4 levels"),
    ({"depth": 5, "branching": [1, 1, 1, 1, 1]}, "deeper than the record"),
    ({"depth": 1, "branching": 4}, "4 children or more in this shape and 3 in the record"),
    ({"draw": "ranked", "nodes": 5}, "no tree of draw='ranked' is nested"),
    ({"branching": 0}, "branching must be"),
]


@pytest.mark.parametrize(("shape", "words"), ASKED)
def test_shapes_that_are_not_nested_are_refused(shape, words, greedy_records):
    with pytest.raises(ValueError, match=words):
        replaying.replay(str(greedy_records["small_model"]), None, shape, "auto")


NOT_NESTED = [
    (Shape(3, [3, 2, 1]), {"draw": "wr"}, "no tree of draw='wr' is nested"),
    (Shape(2, [3, 2], "wr"), {"draw": "wor", "branching": 2}, "no tree of draw='wor' is nested"),
    (Shape(2, [3, 2], "hub"), {"branching": 2}, "hub siblings are not nested"),
    (Shape(2, 4, "ranked", 9), {"nodes": 12}, "nodes=12 is larger"),
    (Shape(2, 4, "ranked", 9), {"branching": 3}, "expand 4 nodes per level"),
    (Shape(2, 1, "adaptive", 4), {"nodes": 3}, "adaptive trees are not nested"),
    (Shape(2, 3, "topk"), {"tree": [[0], [3]]}, "4 children or more"),
]


@pytest.mark.parametrize(("recorded", "given", "words"), NOT_NESTED)
def test_what_is_nested_depends_on_the_draw(recorded, given, words):
    with pytest.raises(ValueError, match=words):
        shapes.asked(given, recorded, greedy=False)


def test_shapes_are_filled_from_the_record():
    wide = Shape(3, [3, 2, 1])
    assert shapes.asked({}, wide, False) == Shape(3, [3, 2, 1])
    assert shapes.asked({"depth": 2}, wide, False).widths == [3, 2]
    assert shapes.asked({"branching": [2, 1]}, wide, False).depth == 2
    assert shapes.asked({"acceptance": [0.5], "nodes": 2}, wide, False).draw == "sequoia"
    tree = shapes.asked({"tree": [[0], [1], [0, 0]]}, Shape(2, 3, "topk"), False).tree
    assert tree == RankTree.given([[0], [1], [0, 0]])
    assert shapes.asked({"branching": 1, "draw": "wr"}, wide, False).law(False) is SiblingLaw.WR
    static = Shape(2, draw="static", tree=tree)
    assert shapes.asked({"depth": 1}, static, False).tree == RankTree.given([[0], [1]])
    assert shapes.restored(json.loads(json.dumps(shapes.described(static)))) == static


def test_a_ranked_record_that_is_too_small_for_a_shape_says_so():
    recorded, wanted = Shape(3, 2, "ranked", 3), Shape(1, 2, "ranked", 2)
    columns = {"parent": np.array([[-1, 0, 1, 2]]), "depth": np.array([[0, 1, 2, 3]])}
    columns["value"] = np.array([[0.0, -0.1, -0.2, -0.3]])
    trees = shapes.WideTrees(columns, np.array([0]), np.array([0]), recorded)
    with pytest.raises(ValueError, match="crowded them out"):
        trees.select(wanted)


def test_rules_must_suit_the_siblings(table_records, greedy_records):
    folder = str(table_records({"depth": 2, "branching": [3, 2]}))
    for rule, words in (("kseq", "its siblings are WOR"), ("block", "for chains")):
        with pytest.raises(specdec.Refused, match=words):
            replaying.replay(folder, None, {}, rule)
    with pytest.raises(specdec.Refused, match="lossy"):
        replaying.replay(folder, None, {}, "typical")
    auto = replaying.replay(folder, None, {"depth": 2, "branching": 1}, "auto")
    assert name_of(auto.rule) == "block"
    with pytest.raises(ValueError, match=r"recorded at temperature 0.*sampling.temperature=1"):
        replaying.replay(str(greedy_records["ranked"]), None, {}, "auto", temperature=1.0)


def test_what_is_no_whole_record_is_refused(greedy_records, tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        files.find(str(tmp_path / "none"), None)
    with pytest.raises(ValueError, match="holds no record of trees"):
        files.find(str(tmp_path), None)
    both = greedy_records["small_model"].parent
    with pytest.raises(ValueError, match=r"several records \(ranked, small_model\)"):
        files.find(str(both), None)
    assert files.find(str(both), "ranked").name == "ranked"
    with pytest.raises(ValueError, match="no record named 'eagle'; there are: ranked"):
        files.find(str(both), "eagle")
    half = tmp_path / "half"
    files.begin(half, {"seed": 1})
    with pytest.raises(ValueError, match="half written"):
        files.read_settings(half)
    place = half / files.RECORD
    for change, words in (
        ({"schema_version": 0}, "schema version 0 and this code reads 1"),
        ({"kind": "other"}, "no record of drafted trees"),
    ):
        content = json.loads((greedy_records["ranked"] / files.RECORD).read_text())
        place.write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=words):
            files.read_settings(half)
    place.write_text("{")
    with pytest.raises(ValueError, match="no whole JSON file"):
        files.read_settings(half)
    with pytest.raises(ValueError, match=r"batch 0 .* cannot be read"):
        files.read(half, 0)


def test_laws_that_are_missing_are_noticed(tmp_path):
    folder = written(tmp_path, {"depth": 1, "branching": 2}, 1.0)
    files.files_of(folder, 0).laws.unlink()
    with pytest.raises(ValueError, match="laws are wanted"):
        files.read(folder, 0)


def test_folders_that_are_not_free_are_refused(greedy_records, tmp_path):
    with pytest.raises(ValueError, match="holds a whole record already"):
        files.begin(greedy_records["ranked"], {})
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="no empty folder and no record"):
        files.begin(tmp_path, {})
    files.begin(tmp_path / "part", {"seed": 1, "every": 2})
    files.begin(tmp_path / "part", {"seed": 1, "every": 2})
    with pytest.raises(ValueError, match="a part of another record: its every is 2, this"):
        files.begin(tmp_path / "part", {"seed": 1, "every": 3})


@pytest.mark.parametrize(
    ("drafter", "words"),
    [("ngram", "grows no trees from laws"), ("medusa", "grows no trees"), ("stop", "stop rule")],
)
def test_drafters_without_laws_are_not_recorded(drafter, words):
    choice = {"name": "small_model", "model": DRAFT, "stop": {"length": 2}}
    with pytest.raises(ValueError, match=words):
        Wide(build("drafter", choice if drafter == "stop" else drafter))


# --------------------------------------------------------------------------------- the programs


@pytest.fixture
def wanted(tiny, tmp_path):
    return program.Record(
        output=str(tmp_path / "records"),
        max_new_tokens=12,
        batch_size=2,
        progress=False,
        target=program.Target(str(tiny)),
        drafter={
            "_target_": "drafters.small_model.SmallModel",
            "model": str(tiny),
            "depth": 2,
            "branching": [2, 1],
        },
        sampling=program.Sampling(1.0),
        prompts=program.Prompts("jsonl", f"{tiny}/prompts.jsonl"),
    )


def test_a_killed_recording_goes_on(wanted, tmp_path, monkeypatch):
    """The batch that was being written is decoded again, those before it are not."""
    whole = tmp_path / "whole"
    assert "48 trees of 4 texts" in program.record(wanted, whole)
    part, write, calls = tmp_path / "part", files.write, []

    def killed(folder, number, batch):
        if number == 1:
            raise KeyboardInterrupt
        write(folder, number, batch)

    monkeypatch.setattr(files, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        program.record(wanted, part)
    with pytest.raises(ValueError, match="half written"):
        replaying.replay(str(part), None, {}, "auto")
    monkeypatch.setattr(files, "write", lambda *given: (calls.append(given[1]), write(*given)))
    program.record(wanted, part)
    assert calls == [1]
    for number in range(2):
        one, other = files.read(whole, number), files.read(part, number)
        assert one.texts == other.texts
        assert (one.nodes["token"] == other.nodes["token"]).all()


def test_programs_record_and_replay(wanted, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    recorded = [
        "target=model",
        f"target.name={tiny}",
        f"drafter.model={tiny}",
        "prompts=jsonl",
        f"prompts.path={tiny}/prompts.jsonl",
        "drafter.depth=2",
        "drafter.branching=[2,2]",
        "max_new_tokens=12",
        "progress=false",
        "sampling=warm",
        "output=records",
    ]
    monkeypatch.setattr("sys.argv", ["record", *recorded])
    program.program()
    told = capsys.readouterr()
    assert "at most" in told.err
    assert "records/small_model: 48 trees of 4 texts" in told.out
    asked = ["replay", "records=records", "drafter.branching=1", "verifier=block"]
    priced = ["costs.nodes=[1,4]", "costs.target=[1,1.5]", "costs.draft=0.1"]
    monkeypatch.setattr("sys.argv", [*asked, *priced])
    replays.program()
    line = json.loads(capsys.readouterr().out)
    assert {"tau", "low", "high", "rounds", "cut_off_mass", "acceptance", "speedup"} <= set(line)
    assert line["low"] <= line["tau"] <= line["high"]
    assert line["way"] == "weighing"
    sweep = [asked[0], "-m", *asked[1:], *priced, "drafter.depth=1,2,3"]
    monkeypatch.setattr("sys.argv", sweep)
    with pytest.raises(SystemExit, match="1 of the sweep's jobs failed"):
        replays.program()
    lines = capsys.readouterr().out.splitlines()
    assert len([each for each in lines if each.startswith("{")]) == 2
    from experiments.report import frames
    from experiments.study import studies

    study = studies.read("replay")
    assert [job.result is not None for job in study.jobs] == [True, True, False]
    assert "deeper than the record" in study.notes[0]
    read = frames.table(study.results)
    assert read["drafter"].str.endswith("(replayed)").all()
    assert read["tau"].tolist()[1] == pytest.approx(line["tau"])
    assert len(study.rounds()) > 20


def test_what_the_folder_holds_decides_what_is_replayed(greedy_records, tmp_path):
    trees = f"records={greedy_records['ranked']}"
    (tmp_path / "outputs.jsonl").touch()
    assert not replays.is_about_outputs([trees, "verifier=naive"])
    assert replays.is_about_outputs([f"records={tmp_path}"])
    assert replays.is_about_outputs([f"records={tmp_path}", "suffix"])
    assert replays.is_about_outputs(["edits=."])
    assert not replays.is_about_outputs(["--help"])
    assert not replays.is_about_outputs(["records=nowhere"])
    with pytest.raises(ValueError, match="holds trees, and suffix is for recorded outputs"):
        replays.is_about_outputs([trees, "suffix"])


def test_costs_predict_speed_ups():
    from experiments.records.costs import Costs

    costs = Costs.of([1, 9], [2.0, 4.0], 0.5)
    assert costs is not None
    assert costs.speedup(3.0, 4.0, 2.0) == pytest.approx(3 * 2 / (3 + 1))
    assert costs.target_at(1.5) == pytest.approx(2.125)
    assert Costs.of([], [], 0.0) is None
    for nodes, target, words in (
        ([1, 2], [1.0], "one number for each"),
        ([2, 4], [1.0, 2.0], "must hold 1"),
    ):
        with pytest.raises(ValueError, match=words):
            Costs.of(nodes, target, 0.0)
    with pytest.raises(ValueError, match="known from 1 to 9 nodes"):
        costs.speedup(3.0, 20.0, 2.0)
