"""One module per benchmark, each exposing `BENCHMARK: eval.base.Benchmark`; found by module name (`eval.base.benchmark`)."""
