"""Clocks, records, reports."""

from tests.production_mutants.mutant import Mutant

REPORT, ACCEPTANCE = "specdec/measuring/report.py", "specdec/measuring/acceptance.py"
RECORDER, CLOCK = "specdec/measuring/recorder.py", "specdec/measuring/clock.py"
NUMBERS = "tests/test_experiments.py -k 'pooled_numbers or gaps or row_per_round'"
OWN = "tests/test_measuring.py"

MUTANTS = (
    Mutant(
        "tau per pass",
        REPORT,
        "return self.num_tokens / max(1, len(self.rows.kept))",
        "return self.num_tokens / max(1, len(self.steps))",
        "a batch of two has twice the block efficiency",
        OWN,
    ),
    Mutant(
        "the median of the prompts' own tau",
        REPORT,
        "float(np.mean(self.tau_per_row))",
        "float(np.median(self.tau_per_row))",
        "the macro mean is another number",
        OWN,
    ),
    Mutant(
        "accepted of all that were offered",
        REPORT,
        "reached = int(self.drafted.reached.sum())",
        "reached = int(self.drafted.offered.sum())",
        "nodes below a rejection lower the acceptance rate",
        OWN,
    ),
    Mutant(
        "the wait for the first token is a gap",
        REPORT,
        "found.append(waits[1:])",
        "found.append(waits)",
        "gaps hold the time to the first token",
        NUMBERS,
    ),
    Mutant(
        "every token of a round waits",
        REPORT,
        "waits = np.zeros(int(kept.sum()))",
        "waits = np.full(int(kept.sum()), waited.max(initial=0))",
        "tokens that arrive together have gaps",
        NUMBERS,
    ),
    Mutant(
        "the prefill counts as decoding",
        REPORT,
        "return sum(self.seconds.values()) - self.seconds.get(PREFILL, 0.0)",
        "return sum(self.seconds.values())",
        "tokens per second depend on the length of prompts",
        OWN,
    ),
    Mutant(
        "one n-gram too few",
        REPORT,
        "max(0, len(sequence) - n + 1)",
        "max(0, len(sequence) - n)",
        "texts look more varied than they are",
        OWN,
    ),
    Mutant(
        "diagnostics of rows that ended",
        REPORT,
        "values[step.live].sum().item()",
        "values.sum().item()",
        "counts go on after a text has ended",
        OWN,
    ),
    Mutant(
        "nodes of rows that ended",
        REPORT,
        "(self.parents >= 0).sum(1) * self.live",
        "(self.parents >= 0).sum(1)",
        "padding counts as drafted",
        OWN,
    ),
    Mutant(
        "children of the root are never reached",
        ACCEPTANCE,
        "((parents == 0) | accepted[rows, above])",
        "accepted[rows, above]",
        "the first depth is missing from acceptance rates",
        OWN,
    ),
    Mutant(
        "nodes, not groups of siblings",
        ACCEPTANCE,
        "groups = int((here & self.reached).any(1).sum())",
        "groups = int((here & self.reached).sum())",
        "acceptance per depth falls with the width of trees",
        OWN,
    ),
    Mutant(
        "ranks are numbers of nodes",
        ACCEPTANCE,
        "np.put_along_axis(ranks, order, index - first, 1)",
        "np.put_along_axis(ranks, order, index, 1)",
        "acceptance by sibling rank is by something else",
        OWN,
    ),
    Mutant(
        "the first token is the last",
        RECORDER,
        "first = now if one.first_token == one.admitted else one.first_token",
        "first = now",
        "the time to the first token is that to the last",
        "tests/test_sessions.py -k reports_count",
    ),
    Mutant(
        "rows that ended belong to a prompt",
        RECORDER,
        "prompts = np.where(outcome.live, prompts, -1)",
        "prompts = np.where(outcome.live, prompts, prompts)",
        "rows that are not live name a prompt",
        "tests/test_sessions.py tests/test_generate.py -k 'reports_count or report_adds_up or "
        "end_early'",
    ),
    Mutant(
        "other is the whole round",
        CLOCK,
        "max(0.0, whole - sum(found.values()))",
        "max(0.0, whole)",
        "seconds by phase add up to twice the round",
        OWN,
    ),
    Mutant(
        "a round lasts since the one before",
        CLOCK,
        "self._began = self.mark()\n\n    def take",
        "pass\n\n    def take",
        "what the caller does between rounds is decoding time",
        OWN,
    ),
)
