"""A million generated items: building an index, and recommending with it and without.

    python benchmarks/million.py --work DIR [--items 1000000] [--fewer 100000]

Two domains of half the items each, with generated features in clusters, which people's histories keep to;
hafvt in widths of 64, trained for one epoch; then `hafvt index`. Opening, recommending and serving are
measured in processes of their own, with a smaller catalog, too. Data and run of an earlier call in DIR are
used again. Writes results/million.md and .json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from load import Client, cpu_seconds, ready, requests, resident_mib
from machine import describe, record, sentence

from hafvt import train
from hafvt.data.dataset import Dataset, Domain, write_dataset
from hafvt.features.table import write_table
from hafvt.files import read_json
from hafvt.inference import index_files
from hafvt.inference.ann import index
from hafvt.inference.histories import user_history
from hafvt.inference.recommender import Recommender
from hafvt.progress import memory_gib

WIDTH = 64  # of all vectors
OF_PERSON = 13  # items of each domain in a history
PER_CLUSTER = 250  # items
VALIDATED = 512  # people whose next items are ranked after the epoch
PORT = 18431


def main() -> None:
    parser = argparse.ArgumentParser(description="Recommends out of a million generated items.")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--fewer", type=int, default=100_000)
    arguments = parser.parse_args()
    measured: dict[str, Any] = {"items": arguments.items, "fewer": arguments.fewer}
    run, small = (trained(arguments.work / str(count), count) for count in (arguments.items, arguments.fewer))
    shutil.rmtree(run / "index", ignore_errors=True)
    measured["exact"] = alone("ask", run, "4")
    measured["index"] = alone("index", run)
    measured["indexed"] = alone("ask", run, "256")
    measured["index_of_fewer"] = alone("index", small)
    measured["indexed_of_fewer"] = alone("ask", small, "256")
    measured["served"] = alone("serve", run)
    measured["machine"] = describe()
    text = markdown(measured)
    record("million", text, measured)
    print(text)


def trained(work: Path, items: int) -> Path:
    """Returns the folder of a run on so many items; trains it if it is not there."""
    run = work / "run"
    if not (run / "model.json").exists():
        shutil.rmtree(work, ignore_errors=True)
        data = make(work / "data", items // 2)
        params = {"id_width": WIDTH, "max_length": 20, "num_negatives": 512, "cluster_sizes": ()}
        train("hafvt", data, run, params=params, epochs=1, batch_size=512, learning_rate=3e-3, test=False)
    return run


def make(folder: Path, half: int) -> Dataset:
    """Writes the dataset: every item stands in one history, among others of its own cluster or the next."""
    chance = np.random.default_rng(0)
    users, count = half // OF_PERSON, 2 * half
    domains = [Domain("x", 0, half), Domain("y", half, count)]
    clusters = half // PER_CLUSTER
    of_item = np.concatenate([chance.integers(0, clusters, half), chance.integers(0, clusters, half)])
    rows = []
    for domain in domains:
        order = np.argsort(of_item[domain.start : domain.stop] + chance.normal(size=half)) + domain.start
        rows.append(order[: users * OF_PERSON].reshape(users, OF_PERSON))
    items = chance.permuted(np.concatenate(rows, axis=1), axis=1)
    table = pl.DataFrame({"item_id": [f"i{n}" for n in range(count)]}).with_columns(
        pl.Series("domain", np.repeat(["x", "y"], half)),
        pl.format("title {}", pl.int_range(count)).alias("title"),
        pl.lit(None, dtype=pl.String).alias("image"),
    )
    length = items.shape[1]
    offsets = np.arange(users + 1) * length
    data = write_dataset(
        folder,
        domains=domains,
        item_table=table,
        user_ids=pl.Series([f"u{n}" for n in range(users)]),
        items=items.ravel(),
        times=np.arange(items.size),
        offsets=offsets,
        train_lengths=np.full(users, length - 2),
        valid=offsets[1 : VALIDATED + 1] - 2,
        test=offsets[1 : VALIDATED + 1] - 1,
    )
    for name in ("image", "title"):
        centers = chance.normal(size=(2 * clusters, WIDTH)).astype(np.float32)
        vectors = centers[of_item + np.repeat([0, clusters], half)]
        vectors += 0.7 * chance.normal(size=vectors.shape).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        present = np.ones(count, dtype=bool)
        write_table(folder / "features" / name, vectors.astype(np.float16), present, {"encoder": "generated"})
    return data


def alone(*what: object) -> Any:
    """Measures in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, what)], check=True, stdout=subprocess.PIPE, text=True
    )
    print(*what[:1], done.stdout, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def built(run: Path) -> dict[str, Any]:
    """Builds the index."""
    summary = index(run)
    facts = {name: getattr(summary, name) for name in ("seconds", "mib", "peak_gib")}
    return {**facts, "domains": {name: one.model_dump() for name, one in summary.domains.items()}}


def histories_(run: Path, most: int) -> dict[str, Any]:
    """Recommends to so many people, one by one and 32 together, ten items each."""
    index_files.MIN_ITEMS_TO_USE = 10_000  # the smaller catalog is below
    begun = time.monotonic()
    recommender = Recommender.open(run)
    data = Dataset.open(read_json(run / "model.json")["data"])
    users = np.random.default_rng(1).permutation(data.num_users)[:most].tolist()
    histories = [user_history(data, user) for user in users]
    recommender.recommend(histories[:1], "x")
    measured = {"open_seconds": time.monotonic() - begun, "gib": memory_gib()}
    seconds, cpu = [], time.process_time()
    for history in histories[:64]:
        before = time.perf_counter()
        recommender.recommend([history], "x")
        seconds.append(time.perf_counter() - before)
    measured["one_ms"] = {f"p{q}": float(1e3 * np.percentile(seconds, q)) for q in (50, 95)}
    measured["one_cpu_ms"] = 1e3 * (time.process_time() - cpu) / len(seconds)
    batched = (histories * 32)[: max(32, most)]
    for domain in ("x", "y"):
        recommender.recommend(batched[:32], domain)
    before, cpu = time.perf_counter(), time.process_time()
    for domain in ("x", "y"):
        for start in range(0, len(batched), 32):
            recommender.recommend(batched[start : start + 32], domain)
    measured["of_32_cpu_ms"] = 1e3 * (time.process_time() - cpu) / (2 * len(batched))
    return {**measured, "per_second_of_32": 2 * len(batched) / (time.perf_counter() - before)}


async def served(run: Path, clients: int = 32, seconds: float = 20.0) -> dict[str, Any]:
    """Asks a server in a closed loop."""
    command = [sys.executable, "-m", "hafvt", "serve", str(run), "--port", str(PORT)]
    server = subprocess.Popen(command, stdout=sys.stderr)
    try:
        begun = time.monotonic()
        while not await ready(PORT):
            if server.poll() is not None:
                sys.exit(f"the server ended with {server.returncode}")
            await asyncio.sleep(0.2)
        started, loop, bodies = time.monotonic() - begun, asyncio.get_running_loop(), requests(run)
        cpu, begun = cpu_seconds(server.pid), time.monotonic()
        crowd = [
            (await loop.create_connection(lambda n=n: Client(bodies, n), "127.0.0.1", PORT))[1]  # type: ignore[misc]
            for n in range(clients)
        ]
        await asyncio.sleep(seconds)
        took, cpu = time.monotonic() - begun, cpu_seconds(server.pid) - cpu
        for client in crowd:
            client.stop = True
        await asyncio.gather(*(client.done for client in crowd))
        times = np.concatenate([client.seconds for client in crowd])
        return {
            "clients": clients,
            "seconds": took,
            "ready_seconds": started,
            "requests": len(times),
            "per_second": len(times) / took,
            "milliseconds": {f"p{q}": float(1e3 * np.percentile(times, q)) for q in (50, 95, 99)},
            "errors": sum(len(client.errors) for client in crowd),
            "resident_gib": resident_mib(server.pid) / 2**10,
            "server_cores": cpu / took,
            "cpu_ms": 1e3 * cpu / len(times),
        }
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def markdown(measured: dict[str, Any]) -> str:
    """Returns the report."""
    built, served = measured["index"], measured["served"]
    columns = [measured[name] for name in ("exact", "indexed", "indexed_of_fewer")]
    rows = [
        ("processor ms of a history, 32 together", *(f"{one['of_32_cpu_ms']:.1f}" for one in columns)),
        ("processor ms of a history, alone", *(f"{one['one_cpu_ms']:.1f}" for one in columns)),
        ("histories a second, 32 together", *(f"{one['per_second_of_32']:.1f}" for one in columns)),
        (
            "ms for one history: half, 95 % within",
            *(f"{one['one_ms']['p50']:,.0f} / {one['one_ms']['p95']:,.0f}" for one in columns),
        ),
        ("resident after opening, GiB", *(f"{one['gib']:.1f}" for one in columns)),
        ("opening and the first answer, s", *(f"{one['open_seconds']:.0f}" for one in columns)),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    recalls = "".join(
        f"\n* {items:,} items, domain {name}: {one['recall']:.2%}, scores within {one['largest_error']:.3f}, "
        + ", ".join(f"{count} ({modality})" for modality, count in one["probes"].items())
        + f" of {one['cells']:,} cells"
        for items, report in ((measured["items"], built), (measured["fewer"], measured["index_of_fewer"]))
        for name, one in report["domains"].items()
    )
    num_histories = max(one["num_histories"] for one in built["domains"].values())
    times = " / ".join(f"{t:,.0f}" for t in served["milliseconds"].values())
    return f"""# {measured["items"]:,} generated items

`python benchmarks/million.py --work WORK`

{sentence(measured["machine"])}
Load of the machine at the end: {os.getloadavg()[1]:.1f} (above its cores, other work slowed this).
Two domains of {measured["items"] // 2:,} items, hafvt on ids, pictures and titles in widths of {WIDTH}
(`cluster_sizes=()`), one epoch of training, ten items recommended to each history.

| | all items ranked | with an index | with an index, {measured["fewer"]:,} items |
| --- | ---: | ---: | ---: |
{table}

The index: built in {built["seconds"]:.0f} s, {built["mib"]:,.0f} MiB, at most {built["peak_gib"]:.1f} GiB
while building and measuring. Recall@10 of the exact answer and the largest error of a score on
{num_histories} validation histories, and the cells that a search reads:
{recalls}

`hafvt serve` with the index, {served["clients"]} clients in a closed loop on the same machine for
{served["seconds"]:.0f} s: {served["per_second"]:.0f} requests a second, half / 95 % / 99 % within {times} ms,
{served["errors"]} errors, {served["resident_gib"]:.1f} GiB resident, {served["server_cores"]:.1f} cores busy,
{served["cpu_ms"]:.1f} processor ms per request, ready after {served["ready_seconds"]:.0f} s.
"""


if __name__ == "__main__":
    if sys.argv[1:2] == ["ask"]:
        print(json.dumps(histories_(Path(sys.argv[2]), int(sys.argv[3]))))
    elif sys.argv[1:2] == ["index"]:
        print(json.dumps(built(Path(sys.argv[2]))))
    elif sys.argv[1:2] == ["serve"]:
        print(json.dumps(asyncio.run(served(Path(sys.argv[2])))))
    else:
        main()
