"""One module per data source. Each exposes `SOURCE: data_curation.source.Source` and is discovered by module name."""
