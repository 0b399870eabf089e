"""Auxiliary losses, one file each, found by name (`rl.auxiliary_loss.load`)."""
