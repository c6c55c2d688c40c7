"""What holds for every test: one thread, and property tests that are the same every time and never timed."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("specdec", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("specdec")
