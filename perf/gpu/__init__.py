"""GPU acceptance (`make gpu-check`; docs/gpu_check.md): the stages' own trainers at true shapes on one card, with pass or fail."""
