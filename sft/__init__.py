"""Supervised fine-tuning on the traces that the tree search left."""
