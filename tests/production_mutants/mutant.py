"""What a mutant is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One wrong change.

    old      text that occurs exactly once in the file
    tests    arguments of pytest: the tests that should notice, part of `make test` and quick
    equivalent   why nothing can notice it, if that is so
    """

    name: str
    file: str
    old: str
    new: str
    breaks: str
    tests: str
    equivalent: str | None = None

    def applied(self, source: str) -> str:
        """The file's text with the change. Raises ValueError where the old text is not there, or
        there twice."""
        count = source.count(self.old)
        if count != 1:
            raise ValueError(
                f"mutant {self.name}: its old text occurs {count} times in {self.file}, expected "
                "once; bring it in line with the code"
            )
        return source.replace(self.old, self.new)
