"""One file, one rule of acceptance, one conf/verifier/NAME.yaml. The first line of a file states
its guarantee."""
