"""The vocabulary every stage shares: types, configuration, run folders, jsonl, prompts, boxes, model text, sampling.

Nothing here imports torch at import time except the modules that say so (`fgrpo.hf`, the transformers engine).
"""

__version__ = "0.1.0"
