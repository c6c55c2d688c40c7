"""Trained heads: features, files, marks."""

from tests.production_mutants.mutant import Mutant

FEATURES, HEAD = "specdec/heads/features.py", "specdec/heads/head.py"
LAYER, FILES, MARKS = (
    "specdec/heads/decoder_layer.py",
    "specdec/heads/files.py",
    "specdec/heads/marks.py",
)
HEADS, PUBLISHED = "tests/test_heads.py", "tests/test_published_heads.py"
IN_STEP = f"{HEADS} -k 'whatever_was_accepted and llama_gqa'"

MUTANTS = (
    Mutant(
        "pairs one token early",
        FEATURES,
        "first = [length - count for",
        "first = [length - count - 1 for",
        "a feature goes with the token of its own place, not with the next",
        IN_STEP,
    ),
    Mutant(
        "prompts' pairs one token early",
        FEATURES,
        "[:, 1 : widest + 1]",
        "[:, :widest]",
        "the prompt's features go with the wrong tokens",
        IN_STEP,
    ),
    Mutant(
        "the root's pair is read with the prompt",
        FEATURES,
        "max(state.on_host.lengths[row] - 2, 0)",
        "max(state.on_host.lengths[row] - 1, 0)",
        "the root's pair is in memory twice",
        IN_STEP,
    ),
    Mutant(
        "one new pair too few",
        FEATURES,
        "accepted + 1 if live",
        "max(accepted, 1) if live",
        "features fall behind the text",
        IN_STEP,
    ),
    Mutant(
        "nodes stand on the root's feature",
        FEATURES,
        "before = self._features.gather(1, parents",
        "before = self._features.gather(1, 0 * parents",
        "deeper levels do not see what was guessed at their parents",
        f"{HEADS} -k 'three_steps or draw_alike or static_tree_is_cut'",
    ),
    Mutant(
        "unknown tokens are possible",
        FEATURES,
        "self.heads.vocabulary), -torch.inf)",
        "self.heads.vocabulary), 0.0)",
        "a head proposes tokens that it does not know",
        f"{HEADS} -k reduced_vocabulary",
    ),
    Mutant(
        "training forgets the step's positions",
        FEATURES,
        "torch.arange(length, device=ids.device) + step",
        "torch.arange(length, device=ids.device)",
        "training-time test rotates the later passes by other angles than drafting",
        f"{HEADS} -k three_steps",
    ),
    Mutant(
        "the first row's newest feature",
        FEATURES,
        "out[torch.arange(state.rows, device=taps.device), last][:, None]",
        "out[torch.arange(state.rows, device=taps.device), 0 * last][:, None]",
        "rows that accepted several tokens draft from the first of them",
        IN_STEP,
    ),
    Mutant(
        "later passes see each other's past",
        LAYER,
        "visible = key <= query if number == 0 else key == query",
        "visible = key <= query",
        "training on its own states sees guesses of other paths",
        f"{HEADS} -k three_steps",
    ),
    Mutant(
        "the first layer's kind",
        LAYER,
        'described["layer_types"][-1:]',
        'described["layer_types"][:1]',
        "a head's layer has the first layer's attention window",
        "tests/test_families.py tests/test_heads.py -k 'gemma3 or last_layer'",
    ),
    Mutant(
        "the state of the round's root",
        HEAD,
        "return taps[torch.arange(len(taps), device=taps.device), accepted, -1]",
        "return taps[torch.arange(len(taps), device=taps.device), 0 * accepted, -1]",
        "Medusa drafts from an old state after an acceptance",
        f"{HEADS} -k 'what_training_says'",
    ),
    Mutant(
        "drafts after prompts of one token",
        HEAD,
        "live = [live and length > 1 for",
        "live = [live and length > 0 for",
        "a head drafts from a state that there is not",
        f"{HEADS} -k 'whatever_was_accepted or one_token'",
    ),
    Mutant(
        "a head of any size",
        HEAD,
        "if own[what] != size:",
        "if own[what] == size and False:",
        "a head of another target fails inside a product of matrices",
        f"{HEADS} -k another_target",
    ),
    Mutant(
        "another target's embedding passes",
        HEAD,
        "if not torch.allclose(ours, theirs, rtol=0.02, atol=1e-5):",
        "if False:",
        "a published head of another revision drafts nothing that is accepted",
        f"{PUBLISHED} -k must_be_the_targets",
    ),
    Mutant(
        "left-over keys pass",
        FILES,
        "if missing or extra or wrong:",
        "if missing or wrong:",
        "weights that no module takes are dropped",
        f"{PUBLISHED} -k missing_extra",
    ),
    Mutant(
        "names are replaced anywhere",
        FILES,
        "if name.startswith(ours):",
        "if ours in name:",
        "a key with such a part in its middle is renamed",
        f"{PUBLISHED} -k every_key",
        equivalent="no key of a published head has such a part but at its beginning",
    ),
)
