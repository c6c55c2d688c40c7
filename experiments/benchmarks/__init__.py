"""What the benchmark programs share: prompts and a target, many ways over them in turn, and where
the table is written."""
