"""One file, one drafter, one conf/drafter/NAME.yaml. Drafters import specdec and nothing of each
other."""
