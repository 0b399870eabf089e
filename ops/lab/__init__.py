"""The laboratory: declared grids of small runs (methods x conditions x seeds), their results, and verdicts on hypotheses."""
