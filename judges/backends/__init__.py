"""One file a backend, each with a constant `BACKEND` (see `judges.base.Backend`), found by the file's name."""
