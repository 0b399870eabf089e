"""Scores the generations that another harness stored: its files in, one evaluated model out (`python -m eval.external`).

`formats/` reads a harness' files (one module each), `matching` finds each row's question and images, `run` scores with the code
that scores our own generations. The result is an ordinary folder of runs/<preset>/eval.
"""
