"""What rounds cost, what drafts are worth, and what is decided before a draw."""

from tests.production_mutants.mutant import Mutant

GROWING, COSTS = "specdec/pricing/growing.py", "specdec/pricing/costs.py"
PRICE, SURVIVAL = "specdec/pricing/price.py", "specdec/pricing/survival.py"
POLICY, PRICED = "specdec/pricing/by_price.py", "drafters/priced.py"
OF_COSTS, OF_PRICED = "tests/test_costs.py", "tests/test_priced.py"
LAWS = "tests/test_laws.py -k 'one_round_has and priced and (block or traversal)'"

MUTANTS = (
    Mutant(
        "a budget that reads q of the drawn token",
        GROWING,
        "        above.append(parents)\n",
        "        own = _read(q[:, :1].gather(2, tokens[:, None])[:, 0])[0]\n"
        "        parents = np.where(own > 0.3, parents, -1)\n"
        "        above.append(parents)\n",
        "drawn tokens are dropped by their own probability",
        LAWS,
    ),
    Mutant(
        "the length is chosen after drafting",
        GROWING,
        "    if not values:\n        return Grown(TokenTree.root(state.roots, law), 1)",
        "    if not values or int(tree.tokens[0, 1]) == 1:\n"
        "        return Grown(TokenTree.root(state.roots, law), 1)",
        "a draft is dropped by what was drawn",
        LAWS,
    ),
    Mutant(
        "the length of a chain is chosen after drafting",
        GROWING,
        "    if not values:\n        return Grown(TokenTree.root(state.roots, plan.law), 1)",
        "    if not values or int(tree.tokens[0, 1]) == 1:\n"
        "        return Grown(TokenTree.root(state.roots, plan.law), 1)",
        "a chain is dropped by what was drawn",
        LAWS,
    ),
    Mutant(
        "siblings with the places of their neighbours",
        GROWING,
        "at = Sites(put // size, put % size + first, zero, zero + level, alive)",
        "at = Sites(put // size, put % size, zero, zero + level, alive)",
        "a level is drawn with the noise of the one above",
        f"{OF_PRICED} -k no_key_is_used_twice",
    ),
    Mutant(
        "more children than the law has tokens",
        GROWING,
        "site = np.minimum.accumulate(site, -1) * (relative > 0)",
        "site = np.minimum.accumulate(site, -1)",
        "a token of probability 0 is drafted",
        LAWS,
    ),
    Mutant(
        "priced trees as deep as the room",
        GROWING,
        "return np.array(host.live) & (level + 1 < np.array(host.room))",
        "return np.array(host.live) & (level < np.array(host.room))",
        "no room for the bonus token",
        f"{OF_PRICED} -k many_rooms",
    ),
    Mutant(
        "the ratio in place of the price",
        PRICE,
        "max(options, key=lambda one: one.tokens - price * one.seconds))",
        "max(options, key=lambda one: one.tokens / one.seconds))",
        "rounds take what is best for themselves",
        f"{OF_COSTS} -k best_ratio",
    ),
    Mutant(
        "a price that does not count earlier rounds",
        PRICE,
        "self._sums[rows] = KEEP * before[0] + tokens, KEEP * before[1] + seconds",
        "self._sums[rows] = KEEP * before[0] + tokens, before[1] + seconds",
        "lambda is no rate",
        f"{OF_COSTS} -k rate_of_the_run",
    ),
    Mutant(
        "Newton's step backwards",
        SURVIVAL,
        "self.slope - damping * step",
        "self.slope + damping * step",
        "chances move away from outcomes",
        f"{OF_COSTS} -k learnt_from_outcomes",
    ),
    Mutant(
        "elder siblings count as tried",
        POLICY,
        "tried &= (chosen < 0) | (np.arange(len(parents)) <= chosen)",
        "tried &= (chosen < 0) | (np.arange(len(parents)) >= chosen)",
        "chances are learnt from siblings that nobody tried",
        f"{OF_PRICED} -k outcomes_of_siblings",
    ),
    Mutant(
        "the inner drafter sees the pruned numbers",
        PRICED,
        "own = np.where(path > 0, np.take_along_axis(numbers, path.clip(0), 1), -1)",
        "own = np.where(path > 0, path, -1)",
        "a drafter keeps the wrong nodes in memory",
        f"{OF_PRICED} -k own_numbers",
    ),
    Mutant(
        "a table's contexts are not told apart",
        COSTS,
        "_at_context([o for o in part if o.rows == r], context)",
        "_at_context([o for o in part if o.rows == r], 0)",
        "long texts cost what short ones do",
        f"{OF_COSTS} -k between_and_beyond",
    ),
)
