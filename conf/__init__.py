"""The configuration: one YAML per choice, one folder per group. A package, so that it is found
wherever it is installed."""
