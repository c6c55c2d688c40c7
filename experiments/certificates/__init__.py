"""Evidence that a drafter and a verifier do not change the target's law: exact, sampled at scale,
greedy. It uses `specdec` as any user would and contains no rule of acceptance."""
