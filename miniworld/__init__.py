"""The miniature world: procedurally drawn pictures with exact ground truth, and the small Qwen2.5-VL that lives in it."""
