"""A study on disk: the frame of a run, its folder, sweeps and what is read back."""
