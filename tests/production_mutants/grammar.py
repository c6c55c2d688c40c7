"""Structured output."""

from tests.production_mutants.mutant import Mutant

GRAMMAR, PROBS = "specdec/grammar.py", "specdec/probs.py"
TESTS = "tests/test_grammar.py"
LAW = f"{TESTS} -k 'law_is and small_model and not 0.0'"

MUTANTS = (
    Mutant(
        "matchers are not forked",
        GRAMMAR,
        "None if self.matcher is None else self.matcher.deep_copy()",
        "self.matcher",
        "siblings read into one another's text",
        LAW,
    ),
    Mutant(
        "a node has its parent's mask",
        GRAMMAR,
        "in reversed(path):",
        "in reversed(path[1:]):",
        "the law after a node is masked as before its token",
        LAW,
    ),
    Mutant(
        "paths are read upwards",
        GRAMMAR,
        "in reversed(path):",
        "in path:",
        "deep nodes stand behind another text",
        f"{TESTS} -k 'greedy_rounds_go_on'",
    ),
    Mutant(
        "what was committed is not read",
        GRAMMAR,
        "in texts(row, text.read):",
        "in ():",
        "every round begins a new text",
        f"{TESTS} -k 'greedy_rounds_go_on'",
    ),
    Mutant(
        "the prompt is a part of the text",
        GRAMMAR,
        "_Row(_Node(matcher(grammar, self.tokens)), len(prompt))",
        "_Row(_Node(matcher(grammar, self.tokens)), 0)",
        "what the prompt says counts",
        LAW,
    ),
    Mutant(
        "drafts are not masked",
        PROBS,
        "        if grammars is not None:\n            masked",
        "        if False:\n            masked",
        "drafted tokens are forbidden ones, and acceptance falls",
        f"{TESTS} -k 'drafts_are_allowed'",
    ),
    Mutant(
        "drafts without an allowed token have no law",
        PROBS,
        "flat = torch.where(masked.amax(-1, keepdim=True).isfinite(), masked, flat)",
        "flat = masked",
        "a drafter with few words ends the run",
        f"{TESTS} -k 'knows_no_allowed_token'",
    ),
    Mutant(
        "a seat keeps its last grammar",
        GRAMMAR,
        "        self._rows.pop(row, None)\n",
        "        pass\n",
        "a text without a grammar is masked by its predecessor's",
        f"{TESTS} -k 'what_it_is_alone'",
    ),
    Mutant(
        "bits from the other end",
        GRAMMAR,
        'bitorder="little"',
        'bitorder="big"',
        "other tokens of the same byte are allowed",
        f"{TESTS} -k 'texts_match'",
    ),
)
