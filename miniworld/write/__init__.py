"""Writes the miniature world's data in the genuine on-disk formats of four training sources and ten benchmarks.

The demo thus runs through the same loaders as the real data. One module per data set, each exposing
`WRITER: miniworld.write.studio.Writer`, discovered by module name. Command: `python -m miniworld.write --preset mini`.
"""
