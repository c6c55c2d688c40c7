"""A package of somebody else, as text: plug-ins that are in order, and some that are not."""

from pathlib import Path

CHAINS = '''
"""Drafters of a package that is not specdec's."""

import torch

from specdec import Drafter, TokenTree


class Repeat(Drafter):
    """A chain of `length` copies of the last token. Nothing is drawn."""

    chain = True
    variants = ({"length": 1}, {"length": 2})

    def __init__(self, length: int = 2) -> None:
        self.length, self.max_nodes = length, length + 1

    def propose(self, state, chance) -> TokenTree:
        tokens = state.roots[:, None].repeat(1, self.length + 1)
        return TokenTree.chain(tokens, (state.room - 1).clamp(0, self.length))


class Unfinished(Repeat):
    """Its `tiny` fails, and its arguments are no lengths."""

    @classmethod
    def tiny(cls, target, draft, **arguments):
        raise RuntimeError("no weights for so few tokens")


def factory(length: int = 2) -> Repeat:
    return Repeat(length)
'''

RULES = '''
"""Rules of a package that is not specdec's."""

from verifiers.naive import Naive


class Mine(Naive):
    """Lossless: token matching under another name."""


class Liar(Naive):
    """Says that it is lossless and takes whatever was drafted."""

    def verify(self, trees, laws, chance):
        found = super().verify(trees, laws, chance)
        bonus = found.bonus * 0 + trees.tokens[:, -1]
        return type(found)(found.path, found.num_accepted, bonus)
'''

IN_ORDER = {
    "drafter/echo.yaml": "_target_: {package}.plugins.chains.Repeat\nlength: 2\n",
    "drafter/echo_far.yaml": "_target_: {package}.plugins.chains.Repeat\nlength: 3\n",
    "drafter/echo_made.yaml": "_target_: {package}.plugins.chains.factory\nlength: 1\n",
    "verifier/mine.yaml": "_target_: {package}.plugins.rules.Mine\n",
    "train/drafter/their_head.yaml": "head: {{_target_: {package}.heads.H.for_target}}\ntrains: "
    "medusa\n",
    "experiment/echoes.yaml": "# @package _global_\ndefaults:\n  - override /drafter: echo\n",
}
BROKEN = {
    "drafter/no_settings.yaml": "just a sentence\n",
    "drafter/no_yaml.yaml": "a: [1\n",
    "drafter/no_target.yaml": "length: 2\n",
    "drafter/no_import.yaml": "_target_: {package}.plugins.broken.X\n",
    "drafter/no_such_class.yaml": "_target_: {package}.plugins.chains.X\n",
    "drafter/no_tiny.yaml": "_target_: {package}.plugins.chains.Unfinished\n",
    "drafter/no_argument.yaml": "_target_: {package}.plugins.chains.Repeat\nlenght: 2\n",
    "verifier/liar.yaml": "_target_: {package}.plugins.rules.Liar\n",
}


def write(folder: Path, package: str, yamls: dict[str, str]) -> Path:
    """The package below `folder`, with these files in its conf/."""
    root = folder / package
    (root / "plugins").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')\n" if not yamls else "")
    (root / "plugins" / "__init__.py").write_text("")
    (root / "plugins" / "chains.py").write_text(CHAINS)
    (root / "plugins" / "rules.py").write_text(RULES)
    (root / "plugins" / "broken.py").write_text("import a_library_that_is_not_here\n")
    for name, text in yamls.items():
        path = root / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(package=package))
    return root


def announce(folder: Path, package: str) -> None:
    """What pip leaves beside an installed package: its name and its entry point."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[specdec]\nplugins = {package}\n")
