"""Ways to decode, played in turn on the same weights, and the numbers that come of it."""
