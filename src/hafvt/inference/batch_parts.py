"""Recommendations for the histories of many files: each file becomes a file, here or on a Ray cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hafvt.data.table_options import TableOptions
from hafvt.errors import ArgumentError, HafvtError, InputError
from hafvt.files import is_temporary, read_json, sha256
from hafvt.inference.batch_writer import to_json, write_rows
from hafvt.inference.histories import HistoryRequest, has_histories, read_requests
from hafvt.inference.recommender import Recommender
from hafvt.inference.request_batches import BatchSummary, batches, recommend_batch
from hafvt.inference.rules import Rules
from hafvt.parts import Part, Work, map_parts
from hafvt.remote import exists, is_remote, list_files, local_copy, output_file, remove

JOB = "_job.json"  # programs that read folders of tables leave out names with an underscore
HISTORY_SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst")


class PartOptions(NamedTuple):
    """What the recommendations of all files depend on, beside the model.

    Attributes:
        defaults: domain, k, ids to exclude and time of histories without them.
        exclude_seen: see `recommend`.
        rules: see `recommend`.
        table_options: see `recommend`.
    """

    defaults: HistoryRequest
    exclude_seen: bool | None
    rules: Rules
    table_options: TableOptions


def is_folder(histories: Any) -> bool:
    """Return whether a source of histories is a folder, a pattern or an address, and no local file."""
    if not isinstance(histories, str | Path):
        return False
    text = str(histories)
    return (
        is_remote(text) or Path(text).is_dir() or (any(c in text for c in "*?[") and not Path(text).exists())
    )


def recommend_parts(
    recommender: Recommender, histories: str, out: str, options: PartOptions, data: Any, ray: str | None
) -> BatchSummary:
    """Write the recommendations for each file of histories to a file in the folder `out`.

    Raises:
        HafvtError: there are no files, the folder has recommendations with other options, or a file is wrong.
    """
    run = Path(recommender)
    files = [file for file in list_files(histories) if file.name.lower().endswith(HISTORY_SUFFIXES)]
    if not files:
        raise HafvtError(f"{histories} has no file of histories: give .jsonl (.gz, .zst) or .parquet files")
    outs = [f"{out.rstrip('/')}/{_output_name(file.name)}" for file in files]
    if twice := next((path for path in outs if outs.count(path) > 1), None):
        raise HafvtError(f"{histories}: two files would become {twice}: rename one")
    model = next(run / name for name in ("export.json", "model.json") if (run / name).exists())
    settings = {
        "model": sha256(model),
        "options": json.loads(json.dumps(options._asdict(), default=str)),
    }
    job = _read_job(out)
    if job is not None and job["settings"] != settings:
        raise HafvtError(
            f"{out} has recommendations of another model or with other options: choose another folder"
        )
    versions = {file.name: file.version for file in files}
    earlier = {} if job is None else job["inputs"]
    for file, path in zip(files, outs, strict=True):
        if earlier.get(file.name) != file.version:
            remove(path)
    if options.defaults.time is None:  # one time for all files, also of a repeated call
        now = int(time.time()) if job is None else job["time"]
        options = options._replace(defaults=options.defaults._replace(time=now))
    with output_file(f"{out.rstrip('/')}/{JOB}") as temporary:
        content = {"settings": settings, "time": options.defaults.time, "inputs": earlier | versions}
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    place: Callable[[str], str] = str
    open_function = partial(part_function, recommender, options)
    if ray is not None:  # workers have other working folders
        folder, moved = run.absolute(), None if data is None else Path(data).absolute()
        place, open_function = _absolute, partial(open_part_function, folder, moved, options)
    parts = [Part(file.path, place(file.path), place(path)) for file, path in zip(files, outs, strict=True)]
    results = map_parts("recommend", open_function, parts, unit="files", ray=ray)
    summary = BatchSummary(out, num_files=len(files), num_earlier_files=len(files) - len(results))
    for result in results.values():
        summary.merge(result)
    return summary


def open_part_function(folder: Path, data: Path | None, options: PartOptions) -> Work:
    """Return the function of a worker, which opens the model."""
    return part_function(Recommender.open(folder, data, threads=1), options)


def part_function(recommender: Recommender, options: PartOptions) -> Work:
    """Return the function that writes the recommendations for a file, and returns their `BatchSummary`."""

    def recommend_file(source: str, out: Path) -> BatchSummary:
        summary = BatchSummary(None)
        with local_copy(source) as file:
            try:
                if not has_histories(file):
                    raise InputError("no histories", "Give objects or rows with a field history", file=file)
                requests = read_requests(
                    file, options.defaults, recommender.domains, None, options.table_options
                )
                kind = ".parquet" if file.suffix.lower() == ".parquet" else ".jsonl"
                with write_rows(out, kind) as write:
                    for batch in batches(requests()):
                        first = summary.num_histories + 1
                        recommended = recommend_batch(recommender, batch, options.exclude_seen, options.rules)
                        pairs = enumerate(zip(batch, recommended, strict=True), start=first)
                        write([to_json(number, *pair) for number, pair in pairs])
                        for one in recommended:
                            summary.add(one)
            except HafvtError as error:
                raise HafvtError(str(error).replace(str(file), source)) from None
        return summary

    return recommend_file


def _absolute(path: str) -> str:
    """Return the absolute path of a local file, or an address."""
    return path if is_remote(path) else str(Path(path).absolute())


def _output_name(name: str) -> str:
    """Return the name of the file that a file of histories becomes: of Parquet Parquet, else plain JSONL."""
    lowered = name.lower()
    suffix = next(suffix for suffix in HISTORY_SUFFIXES if lowered.endswith(suffix))
    return name[: -len(suffix)] + (".parquet" if suffix == ".parquet" else ".jsonl")


def _read_job(out: str) -> dict[str, Any] | None:
    """Return what an earlier call has recorded in a folder; None for a new one."""
    path = f"{out.rstrip('/')}/{JOB}"
    if not exists(path):
        if (
            not is_remote(out)
            and Path(out).exists()
            and (not Path(out).is_dir() or not all(map(is_temporary, Path(out).iterdir())))
        ):
            raise ArgumentError(f"--out {out} exists and has no recommendations: choose another folder")
        return None
    with local_copy(path) as file:
        job: dict[str, Any] = read_json(file, f"remove {out}")
        return job
