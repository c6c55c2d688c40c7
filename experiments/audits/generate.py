"""A command for audits: transformers' own generate.

python -m experiments.audit target=demo \\
    command="python -m experiments.audits.generate target=demo assistant=demo-draft"
"""

from dataclasses import dataclass

from omegaconf import MISSING

from experiments.terminal.options import start


@dataclass
class Generate:
    """python -m experiments.audits.generate target=NAME assistant=NAME: answer requests of an audit
    on standard input by transformers' generate."""

    target: str = MISSING
    assistant: str | None = None  # the draft model of assisted generation; null: none
    num_assistant_tokens: int = 5  # that it drafts per round
    # give both tokenizers to generate, as its page asks for where they differ
    different_tokenizers: bool = False
    dtype: str | None = None  # null: that of the checkpoint


def main(wanted: Generate) -> None:
    from experiments.audits.sampler import serve
    from experiments.audits.transformers_sampler import Transformers
    from experiments.system.libraries import quiet_transformers
    from specdec.models.load import load

    quiet_transformers()
    target = load(wanted.target, dtype=wanted.dtype)
    draft = None if wanted.assistant is None else load(wanted.assistant, dtype=wanted.dtype)
    options = wanted.num_assistant_tokens, wanted.different_tokenizers
    serve(Transformers(target, draft, *options))


if __name__ == "__main__":
    start(main, Generate)
