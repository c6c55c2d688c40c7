"""Evidence that a drafter and a verifier leave the target's law alone: exact, sampled at scale,
greedy. It draws through `specdec` as any user would and contains no rule of acceptance."""
