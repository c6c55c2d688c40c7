"""When chains stop: the rule sees q before anything is drawn, each row on its own, and the law
survives."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

import specdec
from drafters.small_model import SmallModel
from specdec.drafting.stop_rules import (
    AdaptiveThreshold,
    FixedLength,
    StopRule,
    Threshold,
    make_stop,
)
from tests import models
from tests.exact import KNOWN, exact, make

STOPS = [{"length": 1}, {"threshold": 0.55}, {"acceptance": 0.5, "threshold": 0.55}]


@pytest.mark.parametrize("stop", STOPS, ids=str)
@pytest.mark.parametrize("rule", ["token", "block", "naive"])
def test_the_law_survives(stop, rule):
    """Every outcome of whole generations. Some roots of this q pass a threshold of 0.55, some nodes
    do not."""
    found = exact(
        KNOWN,
        make({"name": "small_model", "depth": 2, "stop": stop}, KNOWN),
        rule,
        tokens=3,
        rounds=None,
    )
    assert found.distance(KNOWN.plain(3)) < 1e-12
    assert found.accepted > 0


@dataclass
class Asked(StopRule):
    """Notes what it is asked, and stops as told."""

    answers: list[list[bool]]

    def __post_init__(self):
        self.q, self.depths = [], []  # shared with the copy that a run makes

    def __call__(self, q, depth):
        self.q.append(q)
        self.depths.append(depth)
        return torch.tensor(self.answers[depth])


def _first_tree(stop, rows=1, temperature=1.0):
    """The tree of the first round, drafted by a tiny model."""
    trees = []

    class Watched(SmallModel):
        def propose(self, state, chance):
            trees.append(super().propose(state, chance))
            return trees[-1]

    model = specdec.load(models.shared("llama_gqa"))
    drafter = Watched(models.similar(models.shared("llama_gqa")), depth=3, stop=stop)
    prompts = models.prompts(*[4] * rows)
    next(
        iter(
            specdec.stream(
                model, prompts, drafter=drafter, temperature=temperature, max_new_tokens=8
            )
        )
    )
    return trees[0]


def test_a_rule_is_asked_before_each_draw_with_the_law_that_is_drawn_from():
    stop = Asked([[False], [False], [True]])
    tree = _first_tree(stop)
    assert stop.depths == [0, 1, 2]
    assert tree.parents.tolist() == [[-1, 0, 1]]
    for depth, q in enumerate(stop.q[:2]):
        assert torch.equal(q, tree.q[:, depth])


def test_rows_stop_on_their_own():
    tree = _first_tree(
        Asked([[False, True, False], [True, True, False], [True, True, True]]), rows=3
    )
    assert tree.parents.tolist() == [[-1, 0, -1], [-1, -1, -1], [-1, 0, 1]]


def test_where_all_rows_stop_at_once_nothing_is_drafted():
    assert _first_tree(Asked([[True, True]]), rows=2).num_nodes == 1


def test_at_temperature_0_a_rule_sees_the_law_of_temperature_1():
    stop = Asked([[False], [True]])
    _first_tree(stop, temperature=0.0)
    assert stop.q[0].sum().item() == pytest.approx(1)
    assert stop.q[0].amax() < 1


@pytest.mark.parametrize(
    "stop", [{"threshold": 0.02}, {"acceptance": 0.6, "threshold": 0.02}], ids=str
)
def test_a_row_is_the_same_alone_and_in_a_batch(stop):
    model = models.shared("llama_gqa", torch.float64)
    target, draft, prompts = (
        specdec.load(model),
        specdec.load(models.similar(model)),
        models.prompts(7, 3, 5),
    )
    options = {"temperature": 1.0, "max_new_tokens": 20}
    together = specdec.generate(
        target, prompts, drafter=SmallModel(draft, depth=5, stop=stop), **options
    )
    lengths = {int((step.parents[0] >= 0).sum()) for step in together.steps}
    assert len(lengths) > 1  # the rule does something here
    for row, prompt in enumerate(prompts):
        alone = specdec.generate(
            target,
            [prompt],
            drafter=SmallModel(draft, depth=5, stop=stop),
            request_ids=[row],
            **options,
        )
        assert torch.equal(together.tokens[row], alone.tokens[0])


def _after(drafted, accepted):
    """A state after rounds in which rows drafted and accepted so many tokens."""
    return _state(len(drafted), drafted, accepted)


def _state(rows, drafted=None, accepted=None):
    fresh = [drafted is None] * rows
    return SimpleNamespace(
        last=SimpleNamespace(drafted=drafted, num_accepted=accepted or [0] * rows),
        on_host=SimpleNamespace(fresh=fresh),
    )


def _begun(stop, rows):
    stop.begin(rows)
    stop.round(_state(rows))
    return stop


def test_an_adaptive_threshold_moves_towards_the_wanted_acceptance():
    """Too little is accepted: draft less (the threshold rises). Too much: draft more. Rows don't
    know each other."""
    stop = _begun(AdaptiveThreshold(acceptance=0.5, threshold=0.4), 2)
    for _ in range(50):
        stop.round(_after([4, 4], [0, 4]))
    assert stop.thresholds.tolist() == pytest.approx([0.45, 0.35])
    stop.round(_state(2))
    assert stop.thresholds.tolist() == [0.4, 0.4]  # another request


def test_an_adaptive_threshold_by_hand():
    """Draft & Verify 2309.08168, equation 2: r <- (r + accepted / drafted) / 2; the threshold moves
    by 0.001, up where r is below what is wanted, else down. Row 0 has another request at last."""
    stop = _begun(AdaptiveThreshold(acceptance=0.5, threshold=0.4), 3)
    stop.round(_after([4, 2, 0], [0, 1, 0]))
    assert stop.rates.tolist() == pytest.approx([0.25, 0.5, 0.5])
    assert stop.thresholds.tolist() == pytest.approx([0.401, 0.399, 0.399])
    stop.round(_after([8, 2, 3], [5, 0, 3]))
    assert stop.rates.tolist() == pytest.approx([0.4375, 0.25, 0.75])
    assert stop.thresholds.tolist() == pytest.approx([0.402, 0.4, 0.398])
    state = _after([4, 4, 4], [0, 4, 4])
    state.on_host.fresh[0] = True
    stop.round(state)
    assert stop.rates.tolist() == pytest.approx([0.5, 0.625, 0.875])
    assert stop.thresholds.tolist() == pytest.approx([0.4, 0.399, 0.397])
    stop.round(_after([9, 4, 4], [5, 0, 4]))
    assert stop.rates.tolist() == pytest.approx([(0.5 + 5 / 9) / 2, 0.3125, 0.9375])
    assert stop.thresholds.tolist() == pytest.approx([0.399, 0.4, 0.396])


def test_what_is_just_enough_is_drafted():
    assert Threshold(0.5)(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), 0).tolist() == [False, False]
    assert Threshold(0.5)(torch.tensor([[0.25, 0.375, 0.375]]), 0).tolist() == [True]


def test_an_adaptive_threshold_stays_between_0_and_1():
    stop = _begun(AdaptiveThreshold(acceptance=1.0, threshold=1.0), 2)
    for _ in range(3):
        stop.round(_after([4, 0], [0, 0]))
    assert stop.thresholds[0] == 1
    low = _begun(AdaptiveThreshold(acceptance=0.0, threshold=0.0), 2)
    low.round(_after([4, 0], [0, 0]))
    assert low.thresholds.tolist() == [0, 0]


def test_an_adaptive_threshold_comes_back_from_drafting_nothing():
    stop = _begun(AdaptiveThreshold(acceptance=0.9, threshold=1.0), 1)
    before = stop.thresholds.item()
    stop.round(_after([0], [0]))
    assert stop.thresholds.item() < before


def test_where_a_threshold_starts_is_forgotten():
    """Tokens of top probability c are accepted with probability c. From both sides the threshold
    comes to one place, which is higher where more is wanted."""

    def settled(wanted, start):
        stop, random = _begun(AdaptiveThreshold(wanted, start), 1), torch.Generator().manual_seed(0)
        for _ in range(1500):
            confidence, coins = torch.rand(2, 6, generator=random)
            confidence = confidence.sqrt()
            unsure = (confidence < stop.thresholds.item()).tolist()
            drafted = unsure.index(True) if True in unsure else 6
            stop.round(_after([drafted], [int((coins < confidence)[:drafted].sum())]))
        return stop.thresholds.item()

    assert settled(0.75, 0.1) == pytest.approx(settled(0.75, 0.9), abs=0.05)
    assert settled(0.9, 0.5) > settled(0.6, 0.5) + 0.1


def test_rules_from_settings():
    assert isinstance(make_stop({"length": 3}), FixedLength)
    assert isinstance(make_stop({"threshold": 0.4}), Threshold)
    assert make_stop({"acceptance": 0.8, "threshold": 0.3}).start == 0.3
    assert make_stop(None) is None
    assert FixedLength(2)(torch.ones(1, 3), 2).all()
    assert not FixedLength(2)(torch.ones(1, 3), 1).any()


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ({"threshold": 1.2}, "threshold must be a number between 0 and 1, got 1.2"),
        ({"length": 0}, "length must be an integer >= 1, got 0"),
        ({"acceptance": "high"}, "acceptance must be a number between 0 and 1, got 'high'"),
        ({"treshold": 0.4}, "stop must be .*threshold: 0.4.*got {'treshold': 0.4}"),
        (0.4, "stop must be"),
    ],
)
def test_bad_settings_say_what_was_expected(stop, message):
    with pytest.raises(ValueError, match=message):
        SmallModel(KNOWN.draft, stop=stop)


def test_a_stop_rule_is_for_chains():
    with pytest.raises(ValueError, match="stop is for chains"):
        SmallModel(KNOWN.draft, depth=2, branching=2, stop={"threshold": 0.4})
