"""Numbers measured on the policy itself, for rewards with `needs` (docs/probes.md). One file per probe, found by name."""
