"""What the numbers of a result are counted in."""

BIN = 32  # output tokens of a bin of positions
