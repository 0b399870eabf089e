"""Readers of other harnesses' output files. A module is one with a constant `FORMAT`; nothing is registered."""
