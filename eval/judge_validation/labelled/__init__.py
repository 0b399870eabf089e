"""Public sets with human labels, which validate a judge: one file each with a constant `LABELLED`, found by the file's name.

None of them is shipped or downloaded. `python -m eval.judge_validation.run --labelled vsr:/data/vsr --judge evaluation`.
"""
