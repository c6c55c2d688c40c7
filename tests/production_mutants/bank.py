"""Banks and portfolios, and drafters that are left out of rounds."""

from tests.production_mutants.mutant import Mutant

BANK, SELDOM = "specdec/drafting/bank.py", "specdec/drafting/occasional.py"
MIXTURE, ODDS = "specdec/drafting/mixture.py", "specdec/drafting/odds.py"
TESTS, PORTFOLIO = "tests/test_bank.py", "tests/test_portfolio.py"

MUTANTS = (
    Mutant(
        "what loses is not left out",
        BANK,
        "if not loses and not self.is_in_debt:",
        "if not loses or not self.is_in_debt:",
        "a drafter that fails goes on until the debt is spent",
        f"{TESTS} -k 'becomes_bad'",
    ),
    Mutant(
        "trials as often as ever",
        BANK,
        "longer = min(max(FIRST_WAIT, 2 * self._wait), LONGEST_WAIT)",
        "longer = FIRST_WAIT",
        "no exponential back-off",
        f"{TESTS} -k 'ever_rarer or costs_little'",
    ),
    Mutant(
        "the text to come is not counted",
        BANK,
        "whole = self.earlier.would_take + self.would_take + to_come",
        "whole = self.earlier.would_take + self.would_take",
        "a drafter cannot be tried at the beginning of a text",
        f"{TESTS} -k 'gains'",
    ),
    Mutant(
        "heads miss the states of plain rounds",
        SELDOM,
        "self._states.append(state.last.taps)",
        "self._states[:] = [state.last.taps]",
        "a head that was left out drafts from pairs that do not belong together",
        f"{TESTS} -k 'as_if_it_had_been_there'",
    ),
    Mutant(
        "a path of someone else's draft is kept",
        "drafters/small_model.py",
        "        self._grown = None\n        if grown is None",
        "        if grown is None",
        "the draft model's memory holds nodes of a round that it was left out of",
        f"{TESTS} -k 'as_if_it_had_been_there or runs_under'",
    ),
    Mutant(
        "a looked-up token counts as drawn from the next one's law",
        MIXTURE,
        "tokens.roll(-1, 1)",
        "tokens",
        "q gives a drafted token probability 0",
        f"{PORTFOLIO} -k 'whole_rounds' tests/test_cascade.py",
    ),
    Mutant(
        "drafts are scored before the text decides",
        ODDS,
        "return None if node in self.parents[node + 1 :] else depth",
        "return depth",
        "lookups are worth less than they are",
        f"{PORTFOLIO} -k 'scored_on_the_text'",
    ),
)
