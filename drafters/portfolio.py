"""Several drafters, one of which drafts in each round: the one whose tokens are worth most at what
its rounds take.

Lookups are asked in every round, which takes the host little, and scored on what was committed,
whether they were chosen or not: full information, as in HedgeSpec (2510.20064). Models are scored
by what they drafted, and are tried again now and then (BanditSpec 2505.15141). All averages fade,
so that the choice follows the text; a run begins with those of the run before. A model that was
left out catches up when it is asked; that round takes longer, which counts. Tokens are worth what
they save later, which depends on what the lookups expect (`specdec.pricing.ahead`).

The choice is made before anything is drawn, from earlier rounds and the committed text.

Letters: B rows.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from specdec import Drafter, LanguageModel, Sampling, SiblingLaw, State, TokenTree
from specdec.chance import Draws
from specdec.drafting.occasional import Occasional
from specdec.drafting.odds import MODEL_FADES, Odds, drafts_of
from specdec.drafting.remembered import Owner, forget, owner_of, remembered
from specdec.drafting.stopwatch import Stopwatch
from specdec.errors import some
from specdec.interfaces import compile_of
from specdec.measuring.chosen import Chosen
from specdec.pairing import laws_of, name_of
from specdec.plugins import build, find
from specdec.pricing import known
from specdec.pricing.costs import Costs
from specdec.pricing.measure import here, label
from specdec.pricing.rounds import Rounds
from specdec.ranks import refuse_own_clocks
from specdec.state import tokens_added

Choice = str | Mapping[str, Any] | Drafter


class Earlier(NamedTuple):
    """What a run leaves to the next one."""

    names: list[str]  # of the members
    odds: list[Odds]
    rounds: Rounds


class Portfolio(Drafter):
    """members  drafters: names, {"name": ..., argument: value}, or objects. One that refuses the
             target is left out, which is said on stderr
    costs    null: rounds take what the clock says, so that runs do not repeat | auto | FILE | a
             specdec.Costs
    """

    variants = (
        {"members": [{"name": "ngram", "length": 2}, {"name": "suffix", "nodes": 3}]},
        {
            "members": [
                {"name": "suffix", "nodes": 2, "tree": False},
                {"name": "small_model", "depth": 2},
            ]
        },
        {
            "members": [
                {"name": "small_model", "depth": 1, "branching": 2},
                {"name": "suffix", "nodes": 3},
            ]
        },
    )

    def __init__(
        self, members: Sequence[Choice] = ("ngram", "suffix"), costs: known.Choice | None = None
    ) -> None:
        if isinstance(members, (str, Mapping)) or not isinstance(members, Sequence) or not members:
            raise ValueError(
                "portfolio: members must be a list of at least one drafter, such as [ngram, "
                f"{{name: small_model, depth: 4}}]; got {members!r}"
            )
        self.members: list[Drafter] = [
            each if isinstance(each, Drafter) else build("drafter", each) for each in members
        ]
        self.choice = None if costs is None else known.check_choice(costs)
        self.learns = True  # one decision for all rows, by what all of them have accepted
        named = all(isinstance(each, (str, Mapping)) for each in members)
        self._owner = (owner_of({"portfolio": [*members]}) if named else None) or Owner()

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "Portfolio":
        """With a table that is written down: times that are measured would not repeat."""
        members = [
            each if isinstance(each, Drafter) else find("drafter", each).made_tiny(target, draft)
            for each in arguments.get("members", ("ngram", "suffix"))
        ]
        first, *others = (Costs.written(here(target), label(each)) for each in members)
        return cls(members, first.joined(others))

    # ------------------------------------------------------------------------------------ a run

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        if self.choice is None:
            refuse_own_clocks(target, "portfolio")
        self._members: list[Occasional] = []
        self._tables: list[Costs] = []
        self.left_out: dict[str, str] = {}
        for each in self.members:
            try:
                table = self.choice and known.costs_for(self.choice, target, each, rows)
                self._members.append(Occasional(each, target, rows, sampling))
                self._tables += [table] if isinstance(table, Costs) else []
            except ValueError as reason:
                self.left_out[name_of(each)] = str(reason)
                print(f"portfolio: {name_of(each)} is left out: {reason}", file=sys.stderr)
        if not self._members:
            raise ValueError(
                f"portfolio: every member refuses the target {target.name}: "
                + "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items())
            )
        drafters = [each.drafter for each in self._members]
        self._names = [name_of(each) for each in drafters]
        self.law, self.other_laws = _laws(drafters)
        self.chain = all(each.chain for each in drafters)
        self.fixed_width = len(drafters) == 1 and drafters[0].fixed_width
        self.max_nodes = max(each.max_nodes for each in drafters)
        self.runners_up = max(each.runners_up for each in drafters)
        self.best_tokens = max(each.best_tokens for each in drafters)
        self.taps = tuple(dict.fromkeys(tap for each in drafters for tap in each.taps))
        self.opened = tuple(memory for each in drafters for memory in each.opened)
        self._looks_up = [each.looks_up for each in drafters]
        self._watch = Stopwatch(self.opened)
        self._sampled, self._compiled = not sampling.greedy, bool(compile_of(target))
        self._chosen: int | None = None
        self._kept = {} if self._tables else remembered(self._owner, target, rows, sampling)
        before = self._kept.get("portfolio")
        if before is None or before.names != self._names:
            before = Earlier(self._names, [Odds(rows) for _ in drafters], Rounds())
        self._odds = [each.next_run(rows) for each in before.odds]
        self._rounds = before.rounds.next_run()

    def enter(self, rows: Sequence[int], state: State) -> None:
        for each, odds in zip(self._members, self._odds, strict=True):
            each.enter(rows, self._seen_by(each.drafter, state))
            for row in rows:
                odds.forget(row)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        self._watch.start(state)
        self._before, self._live = state.on_host, sum(state.on_host.live)
        trees: dict[int, TokenTree] = {}
        worth = self._worth = dict[int, float]()  # tokens of a row, the target's own included
        for number, (each, odds) in enumerate(zip(self._members, self._odds, strict=True)):
            if not self._looks_up[number]:
                worth[number] = 1 + odds.worth()
                continue
            trees[number] = each.propose(self._seen_by(each.drafter, state), chance)
            found = drafts_of(trees[number], state, each.drafter.expected)
            for row, draft in found.items():
                odds.note(row, draft)
            if found:
                own = [odds.worth(draft.expected) for draft in found.values()]
                worth[number] = 1 + sum(own) / self._live
        self._offered = {number: trees[number].num_nodes - 1 for number in worth if number in trees}
        self._rounds.begin(max((worth[number] - 1 for number in self._offered), default=0.0))
        chosen = self._chosen = self._choose(worth)
        self.aside = self.decision = None
        for number, each in enumerate(self._members):
            if number == chosen:
                if number not in trees:
                    trees[number] = each.propose(self._seen_by(each.drafter, state), chance)
                self.aside, self.decision = each.drafter.aside, each.drafter.decision
            else:
                each.skip(self._seen_by(each.drafter, state))
        if chosen is None:
            tree, self.chosen = TokenTree.root(state.roots), Chosen(None, 1.0, self._rounds.pace(0))
        else:
            tree = trees[chosen]
            self.chosen = Chosen(self._names[chosen], worth[chosen], self._seconds(chosen))
        self._nodes, self._depth = tree.num_nodes, tree.depth
        return tree

    def _choose(self, worth: Mapping[int, float]) -> int | None:
        """The member whose draft saves most; a model that was never asked, or not for long, first.
        None: nobody drafts."""
        models = [number for number in worth if not self._looks_up[number]]
        untried = [number for number in models if self._odds[number].seconds is None]
        due = [number for number in models if self._odds[number].is_due]
        return (untried + due)[0] if untried or due else self._best(worth)

    def _best(self, worth: Mapping[int, float]) -> int | None:
        each = self._rounds.worth
        values = {n: tokens * each - (self._seconds(n) or 0.0) for n, tokens in worth.items()}
        best = max(values, key=lambda number: values[number], default=None)
        nobody = self._rounds.pace(0)
        if best is None or (nobody is not None and values[best] < each - nobody):
            return None
        return best

    def _seconds(self, number: int) -> float | None:
        """That a round of this member's takes. None: not known yet."""
        if self._looks_up[number]:
            return self._rounds.pace(self._offered[number])
        return self._odds[number].seconds

    def observe(self, state: State) -> None:
        chosen, self._chosen = self._chosen, None
        for each in self._members:
            each.observe(self._seen_by(each.drafter, state))
        for odds in self._odds:
            odds.read(state)
        if self._watch.runs:
            self._account(state, chosen)

    def _account(self, state: State, chosen: int | None) -> None:
        """What the round brought, and what it took."""
        added = tokens_added(self._before, state.on_host)
        seconds = self._took(state, chosen)
        model = None if chosen is None or self._looks_up[chosen] else chosen
        self._rounds.went(added, seconds, self._nodes - 1 if model is None else None)
        if model is not None:
            self._odds[model].came(added - 1, fades=MODEL_FADES)
            self._worth[model] = 1 + self._odds[model].worth()
        best = self._best(self._worth)
        for number, odds in enumerate(self._odds):
            odds.went(number == chosen, number == best, seconds)

    def _took(self, state: State, chosen: int | None) -> float:
        if not self._tables:
            return self._watch.stop()
        self._watch.stop()
        number = 0 if chosen is None else chosen
        drafter = None if chosen is None else label(self._members[number].drafter)
        context = max(state.on_host.lengths)
        curves = self._tables[number].curves(
            drafter, context, state.rows, self._sampled, self._compiled
        )
        return curves.round(self._nodes, self._depth)

    def _seen_by(self, member: Drafter, state: State) -> State:
        """The state with as much of the target's pass as this member has asked for."""
        last = state.last
        if last.taps is not None and member.taps != self.taps:
            at = [self.taps.index(tap) for tap in member.taps]
            last = last._replace(taps=last.taps[:, :, at] if at else None)
        if last.best is not None and member.best_tokens != self.best_tokens:
            best = last.best[..., : member.best_tokens]
            last = last._replace(best=best if member.best_tokens else None)
        return state if last is state.last else replace(state, last=last)

    def leave(self, rows: Sequence[int]) -> None:
        for each in self._members:
            each.leave(rows)
        self._kept["portfolio"] = Earlier(self._names, self._odds, self._rounds)

    def forget(self) -> None:
        forget(self._owner)
        for each in self.members:
            each.forget()

    def account(self) -> dict[str, dict[str, Any]]:
        shares = {
            name: {"rounds": odds.rounds, "seconds": odds.seconds_in_all, "worth": odds.worth()}
            for name, odds in zip(self._names, self._odds, strict=True)
        }
        said = ", ".join(f"{name} {each['rounds']}" for name, each in shares.items())
        left = f"; left out: {some(self.left_out)}" if self.left_out else ""
        return {
            "portfolio": {
                "says": f"portfolio: rounds of {said}{left}",
                "members": shares,
                "left_out": self.left_out,
            }
        }


def _laws(drafters: Sequence[Drafter]) -> tuple[SiblingLaw, frozenset[SiblingLaw]]:
    """The law by which a rule is chosen, that of a drafter that samples if there is one; and what
    else trees may have."""
    laws = {law for each in drafters for law in laws_of(each)}
    sampled = [each.law for each in drafters if each.law is not SiblingLaw.DET]
    law = sampled[0] if sampled else SiblingLaw.DET
    return law, frozenset(laws - {law})


class Auto(Portfolio):
    """A portfolio of lookups under a bank; conf/drafter/auto.yaml names its members."""

    careful = True
