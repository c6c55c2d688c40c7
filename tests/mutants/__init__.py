"""Faults of published decoders, planted on purpose: rules, drafters, chances and engines that a
certificate must refuse."""
