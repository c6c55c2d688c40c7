"""Recipes that train what the framework drafts and verifies with. `experiments.train` is the
command."""
