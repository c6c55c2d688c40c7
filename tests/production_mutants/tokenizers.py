"""Draft models with another tokenizer."""

from tests.production_mutants.mutant import Mutant

PIECES, TRANSLATION = "specdec/models/pieces.py", "specdec/models/translation.py"
TRANSLATED, WRITTEN = "specdec/models/translated.py", "specdec/drafting/written.py"
SMALL = "drafters/small_model.py"


def noticed(by: str) -> str:
    return f"tests/test_other_tokenizers.py -k '{by}'"


MUTANTS = (
    Mutant(
        "q's columns are those of other tokens",
        SMALL,
        "        self.aside = self._grown.inner\n        return self._grown.tree\n",
        "        self.aside = self._grown.inner\n        tree = self._grown.tree\n"
        "        if tree.q is None or self._reader is self.model:\n"
        "            return tree\n"
        "        return tree.drawn_from(tree.law, tree.q.roll(1, -1))\n",
        "the recorded q is a permutation of the law that was drawn from (transformers 5.23)",
        "tests/test_laws.py -k 'one_round_has and intersection and block'",
    ),
    Mutant(
        "drawn before the restriction",
        SMALL,
        "        self.aside = self._grown.inner\n        return self._grown.tree\n",
        "        self.aside = self._grown.inner\n        tree = self._grown.tree\n"
        "        if tree.q is None or self._reader is self.model:\n"
        "            return tree\n"
        "        mixed = (tree.q + 1 / tree.q.shape[-1]) / 2\n"
        "        return tree.drawn_from(tree.law, mixed)\n",
        "the recorded q has mass that was masked before the draw",
        "tests/test_laws.py -k 'one_round_has and intersection and token'",
    ),
    Mutant(
        "text is declared as drawn",
        SMALL,
        "self.law = SiblingLaw.DET if writes else self.law",
        "self.law = self.law",
        "rules for sampled chains are chosen for chains that were not sampled",
        noticed("auto_looks"),
    ),
    Mutant(
        "tokens that are not shared stay in the law",
        TRANSLATION,
        ".masked_fill(~self.shared, FAR)",
        "",
        "tokens are drafted that the draft model does not have",
        noticed("intersection_is_what or q_is_the_law"),
    ),
    Mutant(
        "no law where no shared token is left",
        TRANSLATION,
        "FAR = -1e30",
        'FAR = -float("inf")',
        "a processor that allows only other tokens makes q NaN",
        noticed("leaves_a_law"),
    ),
    Mutant(
        "ids as they are",
        TRANSLATION,
        "return self.into[tokens]",
        "return tokens % len(self.draft.bytes)",
        "drafted tokens are scored as other tokens",
        noticed("always_accepted"),
    ),
    Mutant(
        "ends of texts are no tokens",
        TRANSLATION,
        "found.setdefault(number, other)",
        "pass",
        "no end of a text is drafted",
        noticed("intersection_is_what"),
    ),
    Mutant(
        "markers that only the target has break off",
        TRANSLATION,
        "            if token in self._special:\n",
        "            if token >= 0:\n",
        "a special token without a counterpart is looked up",
        noticed("chat_markers"),
    ),
    Mutant(
        "everything is read, nothing is left for the root",
        TRANSLATION,
        "kept = min(kept, self._same + len(wanted) - 1)",
        "kept = min(kept, self._same + len(wanted))",
        "a text whose tail does not change has no law after its root",
        noticed("say_nothing"),
    ),
    Mutant(
        "settled in the middle of a word",
        TRANSLATION,
        "return other[:1].isspace() and not one[-1:].isspace()",
        "return True",
        "a word that was cut is never written as one piece",
        noticed("settled_at_words"),
    ),
    Mutant(
        "nothing is settled",
        TRANSLATION,
        "if len(self._fresh) > 2 * FRESH:",
        "if len(self._fresh) > 200 * FRESH:",
        "the whole text is tokenized in every round",
        noticed("not_written_again"),
    ),
    Mutant(
        "the memory keeps what was changed",
        TRANSLATED,
        "self._memory.rewind([row], [kept])",
        "self._memory.rewind([row], [before])",
        "new pieces are read after those that they replace",
        noticed("memory_is_that_of_the_text"),
    ),
    Mutant(
        "accepted tokens are read twice",
        TRANSLATED,
        "self._texts[row].held += [given[node] for node in nodes]",
        "self._texts[row].held += []",
        "what is in memory is not known",
        noticed("memory_is_that_of_the_text"),
    ),
    Mutant(
        "accepted tokens are no text",
        TRANSLATED,
        "self._texts[row].add([drafted[node] for node in nodes])",
        "self._texts[row].add([])",
        "the draft model forgets what was accepted",
        noticed("memory_is_that_of_the_text or always_accepted"),
    ),
    Mutant(
        "released rows keep their text",
        TRANSLATED,
        "self._texts[row] = Text(self.translation, self.model.limit)",
        "self._texts[row].limit = self.model.limit",
        "a seat's next request follows the one before",
        noticed("after_its_release"),
    ),
    Mutant(
        "texts by the room and one more",
        WRITTEN,
        "draft[: min(depth, room - 1)]",
        "draft[: min(depth, room)]",
        "no room for the bonus token",
        noticed("row_has_room"),
    ),
    Mutant(
        "padding of the vocabulary is tokens",
        PIECES,
        "            if number >= size:\n                continue\n",
        "",
        "a tokenizer with more tokens than its model has ids breaks off",
        noticed("more_tokens_than_ids"),
    ),
    Mutant(
        "characters that began earlier are lost",
        PIECES,
        "first = 0 if opens else _continued(data)",
        "first = 0",
        "the end of a character that was cut becomes a replacement character",
        noticed("any_stretch or finished_in_the_next"),
    ),
    Mutant(
        "a space before every stretch of text",
        PIECES,
        "if opens or self.text(plain) == text.encode():",
        "if opens or True:",
        "a word that goes on is written as a new one",
        noticed("any_stretch"),
    ),
    Mutant(
        "byte tokens stand for letters",
        PIECES,
        "return BYTE_TOKEN.fullmatch(token) is not None, number",
        "return BYTE_TOKEN.fullmatch(token) is None, number",
        "a letter's token is not shared",
        noticed("byte_token_never"),
    ),
)
