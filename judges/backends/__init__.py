"""Judge backends, one file each with a constant `BACKEND`; found by file name."""
