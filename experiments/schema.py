"""The former name of experiments/study/schema.py, which training still imports."""

from experiments.study.schema import register

__all__ = ["register"]
