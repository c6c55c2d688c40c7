"""Speculation that does no harm: a bank counts the time that drafts have gained over plain
decoding, and stops them where it runs into debt.

The balance of a run is the sum over its rounds with drafts of

    tokens x plain - time

tokens: that a row added, the mean over rows; plain: seconds of a plain round; time: of the round.
Plain rounds neither gain nor lose. `plain` is a lower confidence bound of the median of plain
rounds of the same run, which are interleaved as long as the time that they give away is small.

The first run begins with one plain round, then the drafter is tried. It is left out again when the
balance is below what may be lost, or when recent rounds lose and together have lost as much as a
trial may. Then it is tried again, after twice as many plain rounds as before if the last trial
gained nothing. Every run keeps

    time <= (1 + slack) x T + debt + one round        T: what plain decoding would have taken

and all runs of one drafter on one target together lose at most `slack` x T and a round, a text that
is under way counted as a whole: so a short text loses little of its own time. What a run has
learned of the drafter is where the next one begins. Nothing here knows drafters or models.
"""

import copy
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import sqrt
from statistics import median
from typing import Any, NamedTuple

from specdec.errors import did_you_mean, number, switch

WINDOW = 15  # rounds of either kind that estimates look back on
TREND = 32  # rounds of the running mean of gains
STAKE = 5.0  # plain rounds' time that a trial may lose
FIRST_WAIT = 4  # plain rounds after a trial that failed; twice as many after each further one,
LONGEST_WAIT = 256  # up to so many
OUTLIER = 2.0  # times any recent round but one: what is beyond is the machine's doing
BETWEEN = (4, 16)  # rounds with drafts between plain ones: for the first few, then
FEW = 4
FIRST_ROUNDS = 0.1  # by so much they may be slower than others


@dataclass(frozen=True)
class NoHarm:
    """slack  share of plain decoding's time that trying may cost
    debt   seconds that drafts may be behind plain decoding, besides
    costs  "auto", a `specdec.Costs` or its file: rounds take what it says, so that a run repeats;
           None: the clock
    remember  begin with what earlier runs of this process have learned of this drafter, target and
           temperature; by a cost table every run begins anew
    """

    slack: float = 0.02
    debt: float = 0.2
    costs: Any = None
    remember: bool = True

    def __post_init__(self) -> None:
        number("no_harm: slack (a share of the time)", self.slack, 0, 1)
        number("no_harm: debt (seconds)", self.debt, 0)
        switch("no_harm: remember", self.remember)
        if self.slack == 0 and self.costs is None:
            raise ValueError(
                "no_harm: slack=0 leaves no time for plain rounds, and without them nobody knows "
                "what plain decoding takes; give a slack such as 0.02, or a cost table as costs"
            )

    @classmethod
    def asked(cls, given: "bool | Mapping[str, Any] | NoHarm") -> "NoHarm | None":
        """None for False. Raises ValueError for what is neither True, False nor settings."""
        if isinstance(given, NoHarm):
            return given
        if isinstance(given, bool):
            return cls() if given else None
        if not isinstance(given, Mapping):
            raise ValueError(
                "no_harm must be True, False or settings such as {'slack': 0.02, 'debt': 0.2}, got "
                f"{given!r}"
            )
        known = [one.name for one in fields(cls)]
        for name in given:
            if name not in known:
                raise ValueError(
                    f"no_harm has no setting {name!r}{did_you_mean(str(name), known)}. Its "
                    f"settings: {', '.join(known)}"
                )
        return cls(**given)


class Trial(NamedTuple):
    """Where the balance was when the drafter was asked again, and its highest since."""

    began: float
    peak: float


class Earlier(NamedTuple):
    """Sums of earlier runs."""

    balance: float = 0.0
    would_take: float = 0.0  # plain decoding
    seconds: float = 0.0


class Bank:
    """Of one run, and what it knows from earlier ones."""

    def __init__(self, settings: NoHarm) -> None:
        self.settings, self.earlier = settings, Earlier()
        self._begin()
        self.by_table: float | None = None  # `plain`, where a cost table says it
        self._plain: deque[float] = deque(maxlen=WINDOW)
        self._drafted: deque[float] = deque(maxlen=WINDOW)
        self._trial: Trial | None = None
        self._trend = self._given_away = 0.0
        self._since = 0  # rounds since the drafter was left out, or since the last plain one
        self._wait = 0
        self._left = 0

    def _begin(self) -> None:
        self.balance = 0.0  # seconds that rounds with drafts have gained
        self.lowest = 0.0  # that it has been
        self.seconds = 0.0  # of all rounds
        self.outliers = 0.0  # of those, seconds that were not counted
        self.longest = 0.0  # round with drafts
        self.rounds = self.plain_rounds = self.trials = 0
        self.tokens = self.drafted_seconds = 0.0  # of rounds with drafts

    def next_run(self, settings: NoHarm) -> "Bank":
        """Of a run that begins with what this one has learned."""
        bank = copy.copy(self)
        bank.settings = settings
        bank.earlier = Earlier(
            self.earlier.balance + self.balance,
            self.earlier.would_take + self.would_take,
            self.earlier.seconds + self.seconds,
        )
        if self._trial is not None:
            bank._trial = Trial(*(before - self.balance for before in self._trial))
        bank._plain, bank._drafted = self._plain.copy(), self._drafted.copy()
        bank._begin()
        return bank

    @property
    def would_take(self) -> float:
        """Seconds that plain decoding would have taken for what this run has added."""
        return self.seconds - self.outliers + self.balance

    @property
    def plain(self) -> float | None:
        """A lower confidence bound, about 95%, of the median of recent plain rounds: seconds. None
        before the first."""
        if self.by_table is not None or not self._plain:
            return self.by_table
        count = len(self._plain)
        if count < FEW:  # too few for a bound; the first rounds of a run are slow ones, too
            return min(self._plain) * (1 - FIRST_ROUNDS / count)
        return sorted(self._plain)[max(0, int((count - 1.65 * sqrt(count)) / 2))]

    @property
    def is_in_debt(self) -> bool:
        """Whether more is lost than may be: in this run, or in all."""
        slack, to_come = self.settings.slack, (self.plain or 0.0) * self._left
        whole = self.earlier.would_take + self.would_take + to_come
        lost = -self.balance, -self.balance - self.earlier.balance
        return lost[0] > self.settings.debt + slack * self.would_take or lost[1] > slack * whole

    @property
    def bound(self) -> float:
        """Seconds that the run may take at most, by the promise."""
        slack, debt = self.settings.slack, self.settings.debt
        return (1 + slack) * (self.would_take + self.outliers) + debt + self.longest

    @property
    def usual(self) -> float | None:
        """Seconds of a round with drafts: the median of recent ones. None before the first."""
        return median(self._drafted) if self._drafted else None

    @property
    def pays_from(self) -> float | None:
        """Tokens a round from which drafts pay. None before there are rounds of both kinds."""
        plain, tau = self.balance + self.drafted_seconds, self.tau  # what it would have taken
        return tau * self.drafted_seconds / plain if tau and plain > 0 else None

    @property
    def tau(self) -> float | None:
        """Tokens a round with drafts."""
        drafted = self.rounds - self.plain_rounds
        return self.tokens / drafted if drafted else None

    def speculates(self, left: int) -> bool:
        """Whether the coming round has drafts. left: rounds that plain decoding would still
        take."""
        self._left = left
        plain = self.plain
        if plain is None:
            return False
        if self._trial is not None:
            return not self._plain_is_due(plain)
        if self._since < self._wait or self.is_in_debt:
            return False
        self._trial, self._trend = Trial(self.balance, self.balance), 0.0
        self._since, self.trials = 0, self.trials + 1
        return True

    def note(self, drafted: bool, tokens: float, seconds: float) -> None:
        """A round is over: what it added to a row, and what it took."""
        self.rounds += 1
        self.seconds += seconds
        if not drafted:
            self._note_plain(seconds)
            return
        usual = OUTLIER * sorted(self._drafted)[-2] if len(self._drafted) > 1 else seconds
        self._drafted.append(seconds)
        self.longest = max(self.longest, seconds)
        self.outliers += max(0.0, seconds - usual)
        seconds = min(seconds, usual)
        self.tokens += tokens
        self.drafted_seconds += seconds
        gain = tokens * (self.plain or 0.0) - seconds
        self.balance += gain
        self.lowest = min(self.lowest, self.balance)
        self._trend += (gain - self._trend) / TREND
        self._since += 1
        if self._trial is not None:
            self._judge(self._trial)

    def note_undrafted(self, seconds: float) -> None:
        """The drafter was asked and had nothing to offer; seconds: of the round, drafting not
        counted. As good as a plain round to know what those take."""
        self._plain.append(seconds)

    def _note_plain(self, seconds: float) -> None:
        self.plain_rounds += 1
        self._plain.append(seconds)
        if self._trial is None:
            self._since += 1
        else:
            self._since, self._given_away = 0, self._given_away + self._gives_away(self.plain)

    def _judge(self, trial: Trial) -> None:
        """Leave the drafter out if it loses."""
        trial = self._trial = trial._replace(peak=max(trial.peak, self.balance))
        stake = STAKE * (self.plain or 0.0)
        loses = self._trend < 0 and trial.peak - self.balance >= stake
        if not loses and not self.is_in_debt:
            return
        gained = self.balance > trial.began
        longer = min(max(FIRST_WAIT, 2 * self._wait), LONGEST_WAIT)
        self._wait = FIRST_WAIT if gained else longer
        self._trial, self._since = None, 0

    def _gives_away(self, plain: float | None) -> float:
        """Seconds that a plain round costs where drafts pay."""
        if not plain or not self.tokens:
            return 0.0
        return max(0.0, plain - self.drafted_seconds / self.tokens)

    def _plain_is_due(self, plain: float) -> bool:
        """Whether to interleave a plain round: a quarter of the slack may go to those."""
        if self.by_table is not None or self._since < BETWEEN[len(self._plain) >= FEW]:
            return False
        gives_away = self._gives_away(plain)
        to_come = self._left * (plain - gives_away)
        whole = self.earlier.seconds + self.seconds + to_come
        # twice: what the run's first round gave away was not known then
        return self._given_away + 2 * gives_away <= self.settings.slack / 4 * whole

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, and a sentence."""
        return {
            "says": self.sentence,
            "slack": self.settings.slack,
            "debt": self.settings.debt,
            "rounds": self.rounds,
            "plain_rounds": self.plain_rounds,
            "trials": self.trials,
            "plain_seconds": self.plain,
            "balance": self.balance,
            "lowest": self.lowest,
            "seconds": self.seconds,
            "outliers": self.outliers,
            "bound": self.bound,
            "tau": self.tau,
            "pays_from": self.pays_from,
        }

    @property
    def sentence(self) -> str:
        """What it did, and why."""
        if self.tau is None or self.pays_from is None:
            return f"no_harm: all {self.rounds} rounds were plain"
        balance = f"{abs(self.balance):.2f} s {'ahead of' if self.balance >= 0 else 'behind'}"
        pays = self.tau >= self.pays_from
        verb = f"pays from {self.pays_from:.2f} on" if pays else f"needs {self.pays_from:.2f}"
        return (
            f"no_harm: {self.plain_rounds} of {self.rounds} rounds were plain; a tau of "
            f"{self.tau:.2f} {verb}; {balance} plain decoding, and {self.seconds:.2f} s in all, by "
            f"the promise at most {self.bound:.2f} s"
        )
