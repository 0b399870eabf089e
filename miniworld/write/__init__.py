"""Writes the miniature world's data in the genuine on-disk formats of four training sources and seven benchmarks.

The demo then goes through the very loaders that the real data goes through. One module a data set, each exposing
`WRITER: miniworld.write.studio.Writer`, found by module name. Command: `python -m miniworld.write --preset mini`.
"""
