"""Portfolios: who drafts when, what of it is exact, and lookups that are scored on the text."""

import pytest
import torch

import specdec
from drafters.eagle import Eagle
from drafters.ngram import NGram
from drafters.portfolio import Portfolio
from drafters.recycle import Recycle
from drafters.small_model import SmallModel
from drafters.suffix import Suffix
from experiments.certificates import exact, suite
from experiments.certificates.laws import TWO_DENSE, TWO_ZEROS
from specdec import Drafter, Sampling, SiblingLaw, TokenTree
from specdec.drafting.banked import Banked
from specdec.drafting.odds import WAITS, Draft, Odds
from specdec.plugins import build
from specdec.pricing.ahead import Ahead, kind_of
from specdec.pricing.costs import Costs
from specdec.pricing.measure import here, label
from specdec.pricing.rounds import Pace
from tests.models import head, prompts, shared, similar

MODEL = "llama_gqa"
LOOP = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6]


def target():
    return specdec.load(shared(MODEL, torch.float64))


def draft():
    return specdec.load(similar(shared(MODEL, torch.float64)))


def priced(members, **more):
    """By a table, so that runs repeat; more: seconds of a level of each, in order."""
    tables = [
        Costs.written(here(target()), label(each), plain=1.0, node=0.01, level=level)
        for each, level in zip(members, more.get("levels", [0.1] * len(members)), strict=True)
    ]
    return Portfolio(members, tables[0].joined(tables[1:]))


def run(drafter, **options):
    rows = [*prompts(9, 4), LOOP]
    given = {"max_new_tokens": 16, "seats": 2, **options}
    return specdec.generate(target(), rows, drafter=drafter, **given)


@pytest.mark.parametrize("variant", Portfolio.variants, ids=suite.title)
@pytest.mark.parametrize("rule", ["naive", "block", "traversal"])
def test_whole_rounds_have_the_law(variant, rule):
    """Two rounds: each member drafts in one of them."""
    drafter = {"name": "portfolio", **variant}

    def made(tables):
        return suite.make(drafter, tables.target(), tables.draft())

    for tables in (TWO_DENSE, TWO_ZEROS):
        one = made(tables)
        try:
            specdec.generate(
                tables.target(),
                [[0]],
                drafter=one,
                verifier=rule,
                temperature=1.0,
                max_new_tokens=1,
            )
        except specdec.Refused:
            pytest.skip("the rule is not for these trees")
        found = exact.exact(tables, made, rule, tokens=3, rounds=2)
        assert found.lossless, str(found)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "members",
    [
        lambda: [Eagle(head("eagle", target()), depth=2, nodes=4), SmallModel(draft(), depth=2)],
        lambda: [Recycle(nodes=3), Suffix(nodes=3), Eagle(head("eagle", target()), depth=2)],
        lambda: [NGram(), Suffix(nodes=2, tree=False), SmallModel(draft(), depth=2)],
    ],
)
def test_members_take_turns_and_catch_up(members, temperature):
    """At temperature 0 the output is plain decoding's, whoever drafts."""
    drafter = priced(members())
    out = run(drafter, temperature=temperature)
    by = {step.chosen.drafter for step in out.steps}
    assert len(by - {None}) > 1
    shares = out.report.account["portfolio"]["members"]
    assert sum(each["rounds"] for each in shares.values()) == sum(
        step.chosen.drafter is not None for step in out.steps
    )
    again = run(drafter, temperature=temperature)
    assert [row.tolist() for row in again.tokens] == [row.tolist() for row in out.tokens]
    if temperature == 0:
        plain = run("none")
        assert [row.tolist() for row in out.tokens] == [row.tolist() for row in plain.tokens]


def test_the_cheaper_of_two_that_draft_the_same_is_chosen():
    members = [SmallModel(draft(), depth=2), SmallModel(draft(), depth=2)]
    members[1].yaml_name = "cheap"
    out = run(priced(members, levels=[5.0, 0.01]), max_new_tokens=40)
    rounds = {
        name: each["rounds"] for name, each in out.report.account["portfolio"]["members"].items()
    }
    assert rounds["cheap"] > 3 * rounds["small_model"]


class Refuses(Drafter):
    def begin(self, target, rows, sampling):
        raise ValueError("not for this target")

    def propose(self, state, chance):
        raise AssertionError


def test_a_member_that_refuses_the_target_is_left_out(capsys):
    out = run(Portfolio([Refuses(), NGram()]))
    assert "Refuses is left out: not for this target" in capsys.readouterr().err
    assert "left out: Refuses" in str(out.report)
    with pytest.raises(ValueError, match=r"every member refuses the target.*not for this target"):
        run(Portfolio([Refuses()]))


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([], "at least one drafter"),
        ("ngram", "must be a list"),
        (["ngam"], "unknown drafter 'ngam'; did you mean 'ngram'"),
    ],
)
def test_members_that_cannot_be(members, said):
    with pytest.raises(ValueError, match=said):
        Portfolio(members)


@pytest.mark.parametrize(
    ("members", "temperature", "law", "chain"),
    [
        ([NGram, lambda: SmallModel(draft())], 1.0, SiblingLaw.WOR, True),
        ([NGram, lambda: SmallModel(draft())], 0.0, SiblingLaw.DET, True),
        ([Suffix, lambda: SmallModel(draft())], 1.0, SiblingLaw.WOR, False),
        ([lambda: SmallModel(draft(), depth=2, branching=[2, 1])] * 2, 1.0, SiblingLaw.WOR, False),
        (
            [lambda: SmallModel(draft()), lambda: SmallModel(draft(), draw="wr")],
            1.0,
            SiblingLaw.WOR,
            True,
        ),
    ],
)
def test_the_law_of_a_mixture(members, temperature, law, chain):
    made = Portfolio([each() for each in members])
    made.begin(target(), 1, Sampling(temperature))
    assert (made.law, made.chain) == (law, chain)
    assert {law, *made.other_laws} == {each.drafter.law for each in made._members}


def test_a_rule_is_exact_for_the_trees_of_every_member():
    sampled = SmallModel(draft(), depth=2, branching=[2, 1])
    hub = SmallModel(draft(), draw="hub", branching=2)
    for members in ([Suffix(nodes=3), sampled], [hub, sampled]):
        assert run(Portfolio(members), temperature=1.0).report.verifier == "auto"
    with pytest.raises(specdec.Refused, match=r"siblings are DET and WOR.*exact for WR"):
        run(Portfolio([Suffix(nodes=3), sampled]), temperature=1.0, verifier="kseq")


def test_a_run_begins_with_what_the_run_before_has_learned():
    model = target()
    members = [{"name": "ngram"}, {"name": "suffix"}]

    def begun():
        made = build("drafter", {"name": "portfolio", "members": members})
        made.begin(model, 1, Sampling())
        return made

    begun().forget()
    assert all(odds.seconds is None for odds in begun()._odds)
    choice = {"name": "portfolio", "members": members}
    specdec.generate(model, [LOOP], drafter=choice, max_new_tokens=32)
    assert any(odds.seconds for odds in begun()._odds)
    assert begun()._odds[0].rounds == 0  # of this run
    begun().forget()
    assert all(odds.seconds is None for odds in begun()._odds)


@pytest.mark.parametrize(
    ("text", "accepted"),
    [([], None), ([7], None), ([7, 8], 2), ([7, 9, 1], None), ([7, 9, 4], 2), ([3], 0)],
)
def test_drafts_are_scored_on_the_text(text, accepted):
    r"""0 -> 7 -> (8, 9 -> 1 -> 2)"""
    drafted = Draft(5, [0, 7, 8, 9, 1, 2], [-1, 0, 1, 1, 3, 4])
    assert drafted.accepted(text) == accepted


def test_a_model_that_was_not_chosen_is_tried_again_ever_more_seldom():
    odds = Odds(1)
    waits = []
    for _ in range(5):
        waits.append(odds.wait)
        while not odds.is_due:
            odds.went(False, False, 1.0)
        odds.went(True, False, 1.0)
    assert waits == [WAITS[0] * 2**n for n in range(5)]
    odds.went(True, True, 1.0)
    assert odds.wait == WAITS[0]


def test_auto_is_under_a_bank_unless_the_call_says_no():
    made = build("drafter", "auto")
    banked = run(made)
    assert {"no_harm", "portfolio"} == set(banked.report.account)
    assert set(run(made, no_harm=False).report.account) == {"portfolio"}
    assert isinstance(banked.steps[0].chosen.balance, float)
    assert Banked(made, specdec.drafting.bank.NoHarm()).yaml_name == "auto"


# ----------------------------------------------------------------- what tokens and rounds are worth


def test_a_token_is_worth_what_the_next_round_takes_for_it():
    """Hard rounds (kind 0) come after hard ones, easy ones after easy ones."""
    ahead = Ahead()
    assert ahead(0) == 0.0
    for kind, tokens in [(0, 1), (3, 10)] * 3 + [(0, 1)] * 200 + [(3, 10)] * 200:
        ahead.went(kind, tokens, 10.0)
    assert ahead(0) == pytest.approx(10.0, rel=0.1)
    assert ahead(3) == pytest.approx(1.0, rel=0.5)
    assert ahead.next_run()(0) == ahead(0)
    unseen = ahead(2)  # a kind that was never met is like all of them
    assert ahead(3) < unseen < ahead(0)


def test_kinds_go_by_what_is_expected():
    assert [kind_of(each) for each in (0.0, 0.5, 1.0, 3.0, 7.0, 90.0)] == [0, 1, 2, 3, 4, 4]


def test_rounds_of_lookups_take_longer_with_every_node():
    pace = Pace()
    assert pace(4) is None
    pace.went(0, 2.0)
    assert pace(9) == pytest.approx(2.0)  # one size says nothing of others
    for nodes in (0, 4, 8, 16) * 5:
        pace.went(nodes, 2.0 + 0.1 * nodes)
    assert pace(0) == pytest.approx(2.0)
    assert pace(10) == pytest.approx(3.0)
    before = pace(4)
    pace.went(4, 1000.0)  # a moment in which the machine did something else
    assert pace(4) < 1.2 * before


def test_what_a_member_expects_is_corrected_by_what_came():
    odds = Odds(1)
    assert odds.worth(3.0) == 3.0
    for _ in range(300):
        odds.came(2.0, expected=4.0)
    assert odds.worth(3.0) == pytest.approx(1.5, rel=0.02)
    assert odds.worth() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("parents", "law", "rule"),
    [
        ([-1, 0, 0], SiblingLaw.DET, "naive"),
        ([-1, 0, 1], SiblingLaw.WOR, "block"),
        ([-1, 0, 0], SiblingLaw.WOR, "traversal"),
        ([-1, 0, 0], SiblingLaw.HUB, "naive"),  # its own needs a fixed width: a mixture has none
    ],
)
def test_each_tree_has_the_rule_of_its_own_law(parents, law, rule):
    tokens = torch.tensor([[0, 1, 2]])
    q = None if law is SiblingLaw.DET else torch.ones(1, 3, 4) / 4
    tree = TokenTree(tokens, [parents], law, q)
    if parents == [-1, 0, 1]:
        tree = TokenTree.chain(tokens, None, law, q)
    assert build("verifier", "auto").rule_for(tree).yaml_name == rule
