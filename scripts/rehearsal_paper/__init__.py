"""The rehearsal of paper-7b at true shapes on a CPU (`make rehearsal-paper`; docs/cluster.md)."""
