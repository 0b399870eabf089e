"""One module a data source, each exposing `SOURCE: data_curation.source.Source`; found by module name."""
