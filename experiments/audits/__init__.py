"""Audits of other decoders: tokens from any sampler, held against the target's own law."""
