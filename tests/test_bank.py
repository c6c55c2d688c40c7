"""The bank: when it stops and tries again, what it promises, the law under it, and drafters that
catch up with rounds that they were left out of."""

from itertools import pairwise

import pytest
import torch

import specdec
from drafters.eagle import Eagle
from drafters.recycle import Recycle
from drafters.small_model import SmallModel
from drafters.suffix import Suffix
from experiments.certificates import exact, suite
from experiments.certificates.laws import TWO_DENSE, TWO_ZEROS
from experiments.measuring import measures
from experiments.measuring.measures import balance
from specdec import Drafter, TokenTree
from specdec.drafting import banked
from specdec.drafting.bank import FIRST_WAIT, Bank, NoHarm
from specdec.drafting.banked import Banked, under_bank
from specdec.models.session import TransformersSession
from specdec.pricing.costs import Costs
from specdec.pricing.measure import here
from tests.models import head, prompts, shared, similar

MODEL = "llama_gqa"


def target():
    return specdec.load(shared(MODEL, torch.float64))


class Pattern(Bank):
    """Speculates as it is told."""

    told = (False, True, False, False, True, True)

    def speculates(self, left: int) -> bool:
        return self.told[self.rounds % len(self.told)]


@pytest.fixture
def pattern(monkeypatch):
    monkeypatch.setattr(banked, "Bank", Pattern)


# ------------------------------------------------------------------------------------- the account


def played(bank, rounds, tokens, seconds, plain=1.0, text=None):
    """(share of rounds with drafts, seconds, what plain decoding would have taken)."""
    drafts = taken = due = 0.0
    for number in range(rounds):
        now = bank.speculates((text or rounds) - number)
        added, took = (tokens(number), seconds(number)) if now else (1, plain)
        bank.note(now, added, took)
        drafts, taken, due = drafts + now, taken + took, due + added * plain
    return drafts / rounds, taken, due


def test_a_drafter_that_gains_is_left_out_of_few_rounds():
    share, taken, due = played(Bank(NoHarm()), 400, lambda n: 3, lambda n: 1.5)
    assert share > 0.96
    assert taken < 1.02 * due / 2


@pytest.mark.parametrize("seconds", [1.1, 1.5, 2.5, 4.0])
@pytest.mark.parametrize("rounds", [64, 128, 1000])
def test_a_drafter_that_fails_costs_little(rounds, seconds):
    """At most the slack of the text's own time, and a round."""
    bank = Bank(NoHarm(slack=0.02, debt=1e9))
    _, taken, due = played(bank, rounds, lambda n: 1, lambda n: seconds)
    assert taken - due <= 0.02 * rounds * 1.1 + seconds
    assert taken <= bank.bound
    assert bank.lowest == pytest.approx(bank.balance)


def test_debt_bounds_what_a_long_text_may_lose():
    bank = Bank(NoHarm(slack=0.01, debt=2.0))
    for _ in range(1000):
        now = bank.speculates(100_000)
        bank.note(now, 1, 1.6 if now else 1.0)
        assert -bank.balance <= 2.0 + 0.01 * bank.would_take + 1.6
    assert bank.trials > 1


def test_trials_are_ever_rarer_and_go_on():
    bank, began = Bank(NoHarm(debt=1e9)), []
    for number in range(2000):
        before = bank.trials
        now = bank.speculates(2000 - number)
        bank.note(now, 1, 2.5 if now else 1.0)
        began += [number] * (bank.trials > before)
    waits = [after - before for before, after in pairwise(began)]
    assert waits[0] >= FIRST_WAIT
    assert all(later >= earlier for earlier, later in pairwise(waits))
    assert len(began) > 5


def test_a_drafter_that_becomes_good_is_taken_back():
    bank = Bank(NoHarm())
    played(bank, 300, lambda n: 1, lambda n: 2.0, text=2000)
    share, taken, due = played(bank, 1500, lambda n: 4, lambda n: 2.0, text=1500)
    assert share > 0.75
    assert taken < 0.65 * due


def test_one_that_becomes_bad_is_left_out_soon():
    """What it has gained before is not spent."""
    bank = Bank(NoHarm())
    played(bank, 200, lambda n: 3, lambda n: 1.5, text=1000)
    gained = bank.balance
    share, *_ = played(bank, 300, lambda n: 1, lambda n: 1.5, text=800)
    assert share < 1 / 3
    assert bank.balance > 0.8 * gained


def test_a_slow_moment_of_the_machine_does_not_stop_it():
    share, *_ = played(Bank(NoHarm()), 300, lambda n: 3, lambda n: 40.0 if n == 30 else 1.5)
    assert share > 0.95


def test_plain_rounds_are_bounded_from_below():
    bank = Bank(NoHarm())
    assert bank.plain is None
    for seconds in (1.0, 1.2, 0.9, 5.0, 1.1, 1.0, 1.05, 0.95):
        bank.note(False, 1, seconds)
    assert 0.9 <= bank.plain <= 1.0


def test_the_next_run_begins_with_what_this_one_has_learned():
    bank = Bank(NoHarm())
    played(bank, 128, lambda n: 1, lambda n: 2.5)
    following = bank.next_run(NoHarm())
    share, *_ = played(following, 128, lambda n: 1, lambda n: 2.5)
    assert share <= 2 / 128
    good = Bank(NoHarm(debt=20))
    played(good, 50, lambda n: 3, lambda n: 1.5)
    again = good.next_run(NoHarm(debt=20))
    assert again.balance == 0
    share, *_ = played(again, 50, lambda n: 1 + 6 * (n % 3 == 2), lambda n: 1.5)
    assert share > 0.9


# ------------------------------------------------------------------------------------- the drafter

LAWS = [
    ({"name": "small_model", "depth": 1, "branching": 1, "draw": "wor"}, "block"),
    ({"name": "small_model", "depth": 1, "branching": 2, "draw": "wor"}, "rrs_wor"),
    ({"name": "small_model", "depth": 1, "branching": 2, "draw": "wr"}, "rrs_wr"),
    ({"name": "small_model", "depth": 1, "branching": 2, "draw": "hub"}, "hub"),
    ({"name": "small_model", "depth": 1, "branching": 2, "draw": "ranked", "nodes": 2}, "naive"),
    ({"name": "suffix", "nodes": 2}, "naive"),
]


@pytest.mark.parametrize(("drafter", "rule"), LAWS, ids=suite.title)
def test_the_law_under_a_bank(drafter, rule, pattern, monkeypatch):
    """Rounds with and without drafts, in both orders."""
    for told, tables in (((False, True), TWO_DENSE), ((True, False), TWO_ZEROS)):
        monkeypatch.setattr(Pattern, "told", told)

        def made(tables):
            return Banked(suite.make(drafter, tables.target(), tables.draft()), NoHarm())

        found = exact.exact(tables, made, rule, tokens=3, rounds=2)
        assert found.lossless, str(found)


def drafters():
    lender = target()
    return {
        "chain": lambda: SmallModel(specdec.load(similar(lender.model)), depth=3),
        "ranked": lambda: SmallModel(
            specdec.load(similar(lender.model)), depth=2, draw="ranked", nodes=5
        ),
        "eagle": lambda: Eagle(head("eagle", lender), depth=3, nodes=6),
        "suffix": lambda: Suffix(nodes=4),
        "recycle": lambda: Recycle(nodes=4),
    }


class Watched(Drafter):
    """Notes every tree by the text that it was for; `offers`: whether it is offered, too."""

    def __init__(self, inner, noted, offers):
        self.inner, self.noted, self.offers = inner, noted, offers

    def begin(self, target, rows, sampling):
        self.inner.begin(target, rows, sampling)
        for name in ("law", "chain", "max_nodes", "taps", "best_tokens", "runners_up", "opened"):
            setattr(self, name, getattr(self.inner, name))

    def propose(self, state, chance):
        tree = self.inner.propose(state, chance)
        for row, live in enumerate(state.on_host.live):
            if live:
                used = tree.used[row]
                found = tree.tokens[row][used].tolist(), tree.parents[row][used].tolist()
                self.noted[row, tuple(state.text(row))] = found
        if self.offers:
            self.aside = self.inner.aside
            return tree
        self.aside = None
        return TokenTree.root(state.roots, self.law)

    def enter(self, rows, state):
        self.inner.enter(rows, state)

    def observe(self, state):
        self.inner.observe(state)

    def leave(self, rows):
        self.inner.leave(rows)


@pytest.mark.parametrize("name", ["chain", "ranked", "eagle", "suffix"])
def test_a_drafter_that_was_left_out_drafts_as_if_it_had_been_there(name, pattern):
    """Recycling writes what every tree showed, so its drafts differ by right."""
    made, rows = drafters()[name], [*prompts(9, 4), [5, 6, 7, 5, 6, 7, 5, 6]]
    always: dict = {}
    seldom: dict = {}
    options = {"max_new_tokens": 14, "seats": 2}
    plain = specdec.generate(target(), rows, drafter="none", **options)
    one = specdec.generate(target(), rows, drafter=Watched(made(), always, False), **options)
    inner = Watched(made(), seldom, True)
    other = specdec.generate(target(), rows, drafter=Banked(inner, NoHarm()), **options)
    for out in (one, other):
        assert [row.tolist() for row in out.tokens] == [row.tolist() for row in plain.tokens]
    same = set(always) & set(seldom)
    assert len(same) > 4
    drafts = {key[1]: found for key, found in always.items()}
    assert all(cut(found, drafts[key[1]]) for key, found in seldom.items() if key[1] in drafts)


def cut(one, other):
    """Whether two trees are the same as far as both go: the room may cut either."""
    (tokens, parents), (tokens_2, parents_2) = sorted((one, other), key=lambda tree: len(tree[0]))
    count = len(tokens)
    return (tokens, parents) == (tokens_2[:count], parents_2[:count])


@pytest.mark.parametrize("name", ["chain", "eagle", "suffix", "recycle"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_drafter_runs_under_a_bank(name, temperature, pattern):
    rows = [*prompts(9, 1), [5, 6, 7, 5, 6, 7, 5, 6]]  # a prompt of one token, too
    given = {"max_new_tokens": 12, "temperature": temperature, "seed": 1}
    out = specdec.generate(
        target(), rows, drafter=Banked(drafters()[name](), NoHarm()), seats=2, **given
    )
    chosen = [step.chosen.drafter for step in out.steps]
    assert {name is None for name in chosen} == {True, False}
    assert all(
        step.num_nodes.sum() == 0 for step, by in zip(out.steps, chosen, strict=True) if by is None
    )
    if temperature == 0:
        plain = specdec.generate(target(), rows, drafter="none", **given)
        assert [row.tolist() for row in out.tokens] == [row.tolist() for row in plain.tokens]


class Still:
    """A clock that goes on by a second in every pass of the target."""

    def __init__(self):
        self.passes = 0

    def __call__(self):
        return float(self.passes)


@pytest.mark.parametrize("by_table", [False, True])
def test_a_bank_is_charged_its_rows_share_of_a_round(by_table, pattern, monkeypatch):
    """Two samplings in one engine: three rows of one, one of the other. Tokens are its own rows'
    too."""
    clock, noted, model = Still(), [], target()
    score = TransformersSession.score
    monkeypatch.setattr(
        TransformersSession,
        "score",
        lambda *given, **named: (
            setattr(clock, "passes", clock.passes + 1) or score(*given, **named)
        ),
    )
    note = Pattern.note
    monkeypatch.setattr(
        Pattern, "note", lambda bank, *given: noted.append((id(bank), *given)) or note(bank, *given)
    )
    costs = Costs.written(here(model), "suffix", plain=1.0, node=0.0, level=0.0)
    settings = NoHarm(costs=costs if by_table else None, remember=False)
    made = Banked(Suffix(nodes=4), settings, clock=clock)
    with specdec.Engine(model, drafter=made, seats=4) as engine:
        for number, row in enumerate(prompts(9, 4, 6, 5)):
            engine.submit(row, temperature=float(number == 3), max_new_tokens=12)
        engine.step()
        assert len({bank for bank, *_ in noted}) == 2
        assert [seconds for *_, seconds in noted] == pytest.approx([0.75, 0.25])
        list(engine)
        rounds = engine._run.recorder.rounds
    tokens = dict.fromkeys((bank for bank, *_ in noted), 0.0)
    for bank, _, added, _ in noted:
        tokens[bank] += added
    assert sum(seconds for *_, seconds in noted) == pytest.approx(rounds)
    assert max(tokens.values()) <= 3 * 12
    assert list(tokens.values())[1] == 12  # one row


def test_a_run_by_a_table_repeats_and_reports():
    model = target()
    draft = specdec.load(similar(model.model))
    drafter = SmallModel(draft, depth=2)
    costs = Costs.written(here(model), banked.label(drafter), plain=1.0, node=0.5, level=1.0)
    runs = [
        specdec.generate(
            model,
            prompts(9, 4),
            drafter=drafter,
            no_harm={"costs": costs, "slack": 0.1},
            temperature=1.0,
            max_new_tokens=20,
        )
        for _ in range(2)
    ]
    chosen = [[step.chosen for step in run.steps] for run in runs]
    assert chosen[0] == chosen[1]
    assert {one.drafter for one in chosen[0]} == {None, "small_model"}
    report = runs[0].report
    assert report.drafter == "small_model"
    account = report.account["no_harm"]
    assert account["balance"] < 0 < account["pays_from"] - account["tau"]
    assert account["seconds"] <= account["bound"]
    assert "by the promise at most" in str(report)
    assert report.as_dict()["account"]["no_harm"]["trials"] == account["trials"]
    assert report.why not in str(report)  # the bank's sentence is about the same
    found = balance([report, runs[1].report])  # one after the other, each from 0 on
    rounds = len(runs[0].steps)
    assert (found.rounds, found.plain_rounds) == (2 * rounds, 2 * account["plain_rounds"])
    assert found.at == list(range(2 * rounds + 1))
    assert found.seconds[0] == 0
    assert found.seconds[rounds] == pytest.approx(account["balance"])
    assert found.seconds[-1] == pytest.approx(2 * account["balance"])
    for before, after, step in zip(found.seconds, found.seconds[1:], runs[0].steps, strict=False):
        assert (before == after) == (step.chosen.drafter is None)  # plain rounds neither gain
    assert balance([specdec.generate(model, [[1, 2]], max_new_tokens=2).report]) is None


def test_a_long_balance_is_thinned_out_and_keeps_its_end(monkeypatch):
    monkeypatch.setattr(measures, "POINTS", 5)
    out = specdec.generate(
        target(), prompts(9), drafter=Suffix(nodes=2), no_harm=True, max_new_tokens=24
    )
    found = balance([out.report])
    assert len(found.at) == len(found.seconds) == 5
    assert (found.at[0], found.at[-1]) == (0, len(out.steps))
    assert found.seconds[-1] == out.report.account["no_harm"]["balance"]


def test_what_is_learned_is_kept_by_drafter_target_and_temperature():
    model, drafter = target(), Suffix(nodes=2)
    for choice in ("suffix", drafter):
        for temperature, trials in ((0.0, 1), (0.0, 0), (1.0, 1)):
            made = drafter if choice is drafter else Suffix(nodes=2)
            run = under_bank(made, True, choice)
            out = specdec.generate(
                model, [[5, 6, 7, 5, 6]], drafter=run, max_new_tokens=3, temperature=temperature
            )
            account = out.report.account["no_harm"]
            assert account["plain_rounds"] + account["trials"] > 0
            if trials:
                assert account["plain_rounds"] >= 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"slack": -0.1}, r"slack \(a share of the time\) must be a number >= 0"),
        ({"slack": 2}, r"must be a number >= 0 and <= 1"),
        ({"debt": -1}, r"debt \(seconds\) must be a number >= 0"),
        ({"slack": 0}, r"leaves no time for plain rounds"),
        ({"slak": 0.1}, r"no setting 'slak'; did you mean 'slack'"),
        ("yes", r"must be True, False or settings"),
        ({"remember": "no"}, r"remember must be True or False"),
        ({"costs": 3}, r"costs must be 'auto', a file"),
    ],
)
def test_settings_that_cannot_be(given, said):
    with pytest.raises(ValueError, match=said):
        specdec.generate(target(), [[1, 2]], drafter="ngram", no_harm=given, max_new_tokens=2)
