"""`python -m eval.external`."""

from eval.external.run import main

main()
