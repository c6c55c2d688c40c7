"""Drafters that guess several tokens in one pass, and the layer that a checkpoint brings."""

from tests.production_mutants.mutant import Mutant

PARD, HEADS = "drafters/pard.py", "specdec/heads/parallel.py"
ANCHORS, MTP = "specdec/heads/anchors.py", "drafters/mtp.py"
OF_PARD, OF_HEADS = "tests/test_pard.py", "tests/test_parallel_heads.py"
LAWS = f"{OF_PARD} -k 'one_pass and llama_gqa'"
TRAINING = f"{OF_PARD} {OF_HEADS} -k 'what_drafting_sees and not gemma2'"

MUTANTS = (
    Mutant(
        "a mask stays in the draft model's memory",
        PARD,
        "self._session.keep(path, [each - 1 for each in counts])",
        "self._session.keep(path, [each or -1 for each in counts])",
        "the draft model reads the text with a mask in it",
        LAWS,
    ),
    Mutant(
        "masks one place late",
        PARD,
        "logits, (count - 1).clamp(min=0) +",
        "logits, (count - 1).clamp(min=0) + (widest > 1) +",
        "the first token is drafted from the law of the second",
        LAWS,
    ),
    Mutant(
        "masks in front of shorter rows' tokens",
        PARD,
        "torch.where(number < count, known, behind)",
        "torch.where(number < widest, known, behind)",
        "a row that kept less than its neighbour has padding for its first mask",
        LAWS,
    ),
    Mutant(
        "the last mask for every place",
        PARD,
        "else self.masks[:places]",
        "else self.masks[-1:] * places",
        "masks of their own are one mask",
        f"{OF_PARD} -k mask_of_its_own",
    ),
    Mutant(
        "every level from the root's law",
        "specdec/drafting/marginal.py",
        "return known[rows, depths]",
        "return known[rows, 0 * depths]",
        "all tokens are drafted from the law of the first",
        LAWS,
    ),
    Mutant(
        "blocks see the token that they guess",
        ANCHORS,
        "< seen.repeat_interleave(places, 1)",
        "<= seen.repeat_interleave(places, 1)",
        "training shows what drafting will not see",
        TRAINING,
    ),
    Mutant(
        "blocks see one another",
        ANCHORS,
        "alike[:, None, :, None] & own",
        "(alike | True)[:, None, :, None] & own",
        "training of one anchor shows the masks of the others",
        TRAINING,
    ),
    Mutant(
        "blocks one position early",
        ANCHORS,
        "[:, :, None] + 1",
        "[:, :, None]",
        "masks are trained at other positions than they are read at",
        TRAINING,
    ),
    Mutant(
        "mask pairs are kept",
        HEADS,
        "        self._memory.commit(counts)\n        places",
        "        self._memory.commit([count + (count > 0) for count in counts])\n        places",
        "the head's memory has a mask between the pairs of the text",
        f"{OF_HEADS} -k 'one_pass and llama_gqa'",
    ),
    Mutant(
        "masks have the state of the text",
        HEADS,
        "torch.where(known[..., None], features[:, here], feature)",
        "features[:, here]",
        "the learnt state is never read",
        f"{OF_HEADS} -k 'one_pass and llama_gqa'",
    ),
    Mutant(
        "depths are compared one place early",
        HEADS,
        "Guess(behind[:, :, place], 2 + place, anchors=anchors)",
        "Guess(behind[:, :, place], 1 + place, anchors=anchors)",
        "each mask learns the law before its own",
        f"{OF_HEADS} -k 'what_drafting_sees and llama_gqa'",
    ),
    Mutant(
        "the layer's output is not normed",
        MTP,
        "normed: Tensor = self.post_norm(out)",
        "normed: Tensor = nn.Identity()(out)",
        "the target's head reads a state of another size",
        "tests/test_mtp.py -k transformers_class",
    ),
    Mutant(
        "the state before the embedding",
        MTP,
        "parts[::-1] if self.states_first else parts",
        "parts if self.states_first else parts[::-1]",
        "the projection meets the wrong halves",
        "tests/test_mtp.py -k 'transformers_class or come_first'",
    ),
)
