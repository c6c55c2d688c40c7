"""The former name of experiments/terminal/program.py, which training still imports."""

from experiments.terminal.program import start

__all__ = ["start"]
