"""Data sources: published datasets, each with a command `hafvt prepare-NAME`."""

SOURCES: dict[str, str] = {
    "amazon": "hafvt.data.sources.amazon:prepare_amazon",
    "c2dsr": "hafvt.data.sources.c2dsr:prepare_c2dsr",
}
"""Name of a source -> "module:function"; the signature of the function gives the options of the command.

To add a source, write a module with a function `prepare_NAME(folder, out, *, ..., overwrite=False)` that
reads `folder` and returns `prepare_source(SourceTables(...), out)`, decorate it with `dataset_source`, and
add a line here. A source without a split of its own passes its tables to `hafvt.data.prepare.prepare`.
"""
