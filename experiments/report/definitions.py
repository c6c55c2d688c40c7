"""What the words of a report mean. Every page ends with them."""

from experiments.certificates.law import WORDS

DEFINITIONS = {
    "Round": "One draft, one forward pass of the target over all drafted nodes, one verification, "
    "one commit. Reading the prompt "
    "(prefill) is no round.",
    "τ (micro), block efficiency": "Tokens that rows kept / rounds in which they were live, all "
    "prompts pooled. The bonus token counts; tokens cut "
    "at the end of a text, a stop string or the length do not.",
    "τ (macro)": "The mean over prompts of each prompt's own τ.",
    "τ with prefill": "As micro, with the prefill counted as one more round per prompt that keeps "
    "nothing.",
    "Accepted per round (micro, macro)": "Drafted tokens accepted per live round, without the "
    "bonus and before cuts.",
    "Acceptance rate": "Accepted / offered, at nodes that were reached: whose parent was accepted, "
    "or is the root.",
    "Offered, reached, accepted": "A node is offered when it is in a tree, reached when its parent "
    "was accepted, accepted when the verifier kept it. Rank: its place among its siblings, from 1 "
    "in figures.",
    "α": "Accepted / reached groups of siblings: the chance that one of the children of a reached "
    "node is accepted.",
    "Speed-up": "Seconds per token of the baseline / of the method, both decoding the same prompt "
    "in the same process, in turn; whole calls. The median over prompts (over batches, where there "
    "are several prompts in one). Runs are compared with each other through the baseline that they "
    "share.",
    "Interval": "95% percentile bootstrap over prompts, 2,000 resamples. It covers the choice of "
    "prompts, not other machines or days; below three "
    "prompts there is none.",
    "Noise": "The first baseline decoded twice and divided by itself. A speed-up within it means "
    "nothing.",
    "Law": f"{WORDS}.",
    "Cold, warm": "A drafter that learns across prompts is warm when it has met the earlier "
    "prompts of its run, in their order, and cold when it forgets "
    "before each. Headline numbers are warm; their intervals cover the choice of prompts, not "
    "their order.",
    "Distinct 4-grams": "Different / all 4-grams of the output tokens. Loops flatter every "
    "drafter.",
    "Plain decoding": "The drafter `none` in the same loop: one token per pass.",
    "Closed form": "Leviathan et al. (2023): (1 − α^(γ+1)) / (1 − α) tokens per round for drafts "
    "of γ tokens, and that / (γc + 1) as speed-up, where a draft "
    "pass costs c target passes.",
}
