"""A study's report: one HTML page, its figures and its tables."""
