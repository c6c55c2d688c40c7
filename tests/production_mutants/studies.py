"""Studies: intervals, measures, comparisons, sweeps."""

from tests.production_mutants.mutant import Mutant

INTERVALS, MEASURES = "experiments/measuring/intervals.py", "experiments/measuring/measures.py"
ROUNDS, OUTCOME = "experiments/measuring/rounds.py", "experiments/study/outcome.py"
DIVERGENCE, COMPARISON = ("experiments/measuring/divergence.py", "experiments/report/comparison.py")
SWEEPS, FOLDER, RUN = (
    "experiments/study/sweeps.py",
    "experiments/study/folder.py",
    "experiments/run.py",
)
PREDICTION = "experiments/report/prediction.py"
OWN = "tests/test_statistics.py"
NUMBERS = "tests/test_experiments.py -k"

MUTANTS = (
    Mutant(
        "prompts are not resampled in pairs",
        INTERVALS,
        "paired=True",
        "paired=False",
        "a pooled ratio's tokens come from other prompts than its rounds",
        f"{OWN} -k interval",
    ),
    Mutant(
        "three values are too few",
        INTERVALS,
        "if count < FEWEST:",
        "if count <= FEWEST:",
        "an interval is missing",
        f"{OWN} -k interval",
    ),
    Mutant(
        "half of the resamples",
        INTERVALS,
        "confidence_level=confidence",
        "confidence_level=confidence / 2",
        "a 95% interval holds less",
        f"{OWN} tests/test_report.py {NUMBERS.split()[0]} -k 'interval'",
    ),
    Mutant(
        "ratios upside down",
        INTERVALS,
        "np.divide(*_paired(above, below))",
        "np.divide(*_paired(below, above))",
        "a method that is faster looks slower",
        "tests/test_report.py -k paired_intervals",
    ),
    Mutant(
        "a mean of ratios for a ratio of sums",
        INTERVALS,
        "a.sum(axis) / b.sum(axis)",
        "(a / b).mean(axis)",
        "short texts weigh as much as long ones",
        f"{OWN} tests/test_report.py -k 'pooled'",
    ),
    Mutant(
        "differences the other way",
        INTERVALS,
        "np.subtract(*_paired(first, second))",
        "np.subtract(*_paired(second, first))",
        "B - A is A - B",
        f"{OWN} tests/test_report.py -k 'interval'",
    ),
    Mutant(
        "families are tested by Bonferroni",
        INTERVALS,
        'method="holm"',
        'method="bonferroni"',
        "adjusted p-values are too large",
        "tests/test_report.py -k families",
    ),
    Mutant(
        "tau per pass, pooled",
        MEASURES,
        '"tau": tau(kept, row_rounds),',
        '"tau": tau(kept, rounds),',
        "a batch of two has twice the block efficiency",
        f"{NUMBERS} pooled_numbers",
    ),
    Mutant(
        "prefills make tau larger",
        MEASURES,
        "tau(kept, row_rounds + prompts)",
        "tau(kept, row_rounds - prompts)",
        "tau with the prefill counts rounds that there were not",
        f"{OWN} -k prefill",
    ),
    Mutant(
        "speed-ups upside down",
        MEASURES,
        "ratios = [theirs / ours for theirs, ours in pairs]",
        "ratios = [ours / theirs for theirs, ours in pairs]",
        "slower is faster",
        f"{NUMBERS} speedup",
    ),
    Mutant(
        "turns are resampled",
        MEASURES,
        """            kept[one.prompts[row].index] += len(one.samples[way].tokens[row])
            rounds[one.prompts[row].index] += number
""",
        """            place = 1000 * one.turn + one.prompts[row].index
            kept[place] += len(one.samples[way].tokens[row])
            rounds[place] += number
""",
        "turns of a conversation count as independent prompts",
        f"{OWN} -k turns",
    ),
    Mutant(
        "bins of one token",
        MEASURES,
        'method["position"] // BIN * BIN',
        'method["position"] // BIN',
        "bins of positions are numbered, not placed",
        f"{OWN} -k bins",
    ),
    Mutant(
        "memory of all calls together",
        MEASURES,
        "key: max(report.cache_bytes[key] for report in reports)",
        "key: sum(report.cache_bytes[key] for report in reports)",
        "memory grows with the number of batches",
        f"{OWN} -k prefill",
    ),
    Mutant(
        "seconds of a batch once per prompt",
        OUTCOME,
        "seconds[entry.batch][entry.turn] = entry.wall_seconds",
        "seconds[entry.batch][entry.turn] = entry.wall_seconds + seconds[entry.batch].get("
        "entry.turn, 0.0)",
        "a batch of two takes twice its time",
        f"{NUMBERS} count_once",
    ),
    Mutant(
        "positions behind the round",
        ROUNDS,
        '"position": (told - kept)',
        '"position": told',
        "a round's position counts its own tokens",
        f"{NUMBERS} row_per_round",
    ),
    Mutant(
        "what follows a difference is compared",
        DIVERGENCE,
        "if list(given) != list(to_baseline):",
        "if False:",
        "later turns of another conversation count as divergences",
        f"{NUMBERS} divergence_names",
    ),
    Mutant(
        "A - B",
        COMPARISON,
        "return ([theirs[place] for place in both], [mine[place] for place in both]) if",
        "return ([mine[place] for place in both], [theirs[place] for place in both]) if",
        "differences have the wrong sign",
        f"{OWN} tests/test_report.py -k 'comparison or paired'",
    ),
    Mutant(
        "p-values as they are",
        COMPARISON,
        "holm([sign_flip(values.tolist()) for *_, values in tests])",
        "[sign_flip(values.tolist()) for *_, values in tests]",
        "many comparisons find something by chance",
        "tests/test_report.py -k 'comparison or paired'",
    ),
    Mutant(
        "sweeps by name",
        SWEEPS,
        "return read_or_nothing(path).number, _started(path), path.name",
        "return 0, 0.0, path.name",
        "a clock that went back hides the newest sweep",
        "tests/test_studies.py -k ordered",
    ),
    Mutant(
        "a sweep of other jobs is resumed",
        SWEEPS,
        "if before.jobs is not None and before.jobs != jobs:",
        "if False:",
        "results of two sweeps are mixed",
        "tests/test_studies.py -k resum",
    ),
    Mutant(
        "jobs that have a result run again",
        RUN,
        "if again and (folder / RESULT).exists():",
        "if False:",
        "resuming repeats what is done",
        f"{NUMBERS} sweep_resumes",
    ),
    Mutant(
        "a folder is taken twice",
        FOLDER,
        "elif (folder / STARTED).exists():",
        "elif False:",
        "a second run overwrites the first one's result",
        f"{NUMBERS} second_run",
    ),
    Mutant(
        "records of any version are read",
        "experiments/study/result.py",
        "if version != SCHEMA_VERSION:",
        "if version is None:",
        "old numbers pass for what the present names mean",
        "tests/test_studies.py -k what_is_no_result",
    ),
    Mutant(
        "records may hold anything",
        OUTCOME,
        '{"extra": "forbid"}',
        '{"extra": "ignore"}',
        "a field that nobody knows is dropped",
        "tests/test_studies.py -k what_is_no_result",
    ),
    Mutant(
        "jobs in the order of words",
        "experiments/study/studies.py",
        "int(first) if first.isdigit() else 0, folder.name",
        "0, folder.name",
        "job 10 comes before job 2",
        f"{OWN} -k jobs",
    ),
    Mutant(
        "one token too few per round",
        PREDICTION,
        "(1 - rate ** (length + 1)) / (1 - rate)",
        "(1 - rate**length) / (1 - rate)",
        "the closed form forgets the bonus",
        "tests/test_report.py -k closed_form",
    ),
)
