"""Training runs: checkpoints, processes, launching, the metrics file."""
