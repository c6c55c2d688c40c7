"""One file, one rule of acceptance, one conf/verifier/NAME.yaml. Its guarantee stands in the first
line."""
