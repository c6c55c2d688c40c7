"""What is known about the law of a run's output, and the words for it in the terminal, in tables
and in reports."""

from dataclasses import dataclass, field

from experiments.system.surroundings import Git

CERTIFIED, STALE, NOT_CERTIFIED, LOSSY, NOT_APPLICABLE = (
    "certified",
    "stale",
    "not certified",
    "lossy",
    "not applicable",
)
WORDS = (
    "certified: the pair of drafter and rule has a certificate of this code; in parentheses the "
    "checks that ran (exact: the law computed outcome by outcome; sampled: counts against a "
    'computed law; greedy: tokens of a real model at T = 0). "rule and tree, other settings": the '
    "certificate is of the same rule and kind of tree, with other sizes or another draft model. "
    "stale: the code that is named has changed since. lossless, not certified: the rule keeps the "
    "target's law by its contract, and there is no certificate. lossy: the output does not follow "
    "the target's law"
)


@dataclass(frozen=True, kw_only=True)
class Law:
    """What is known, and from which certificate; `str` says it in a few words."""

    verdict: str  # certified | stale | not certified | lossy
    file: str | None = None  # the pair's certificate
    git: Git | None = None  # what the certificate is of
    # whether it is of the very same arguments; None where there is none
    same_settings: bool | None = None
    checks: list[str] = field(default_factory=list)  # that ran
    changed: list[str] = field(default_factory=list)  # code that differs: specdec, drafter ...

    def __str__(self) -> str:
        if self.verdict == CERTIFIED:
            checks = ", ".join(self.checks) or "checks not recorded"
            covers = "" if self.same_settings else ": rule and tree, other settings"
            return f"certified{covers} ({checks})"
        if self.verdict == STALE:
            return f"stale: {', '.join(self.changed)} changed"
        if self.verdict == NOT_CERTIFIED:
            missing = self.same_settings is None
            return "lossless, not certified" if missing else "not certified: a check failed"
        return self.verdict


def mark(said: str) -> str:
    """The class by which a page colours the words of a law: certified | stale | lossy, or none."""
    if said.startswith(f"{CERTIFIED} ("):  # and not "certified: ... other settings"
        return CERTIFIED
    return next((word for word in (STALE, LOSSY) if said.startswith(word)), "")
