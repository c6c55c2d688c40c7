"""The former name of experiments/terminal/progress.py, which training still imports."""

from experiments.terminal.progress import bar

__all__ = ["bar"]
