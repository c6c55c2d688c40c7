"""One file, one drafter, one conf/drafter/NAME.yaml. Drafters import specdec, but not each
other."""
