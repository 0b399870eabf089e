"""Public sets whose labels people gave, one file each with a constant `LABELLED`, found by the file's name: they check a judge.

None of them is shipped or downloaded. `python -m eval.judge_validation.run --labelled vsr:/data/vsr --judge evaluation`.
"""
