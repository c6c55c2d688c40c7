"""The former name of experiments/report/logger.py, which training still imports."""

from experiments.report.logger import opened

__all__ = ["opened"]
