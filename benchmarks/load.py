"""How `hafvt serve` bears load: requests a second, how long they take, what it loses, what memory it takes.

    python benchmarks/load.py RUN [--seconds 300] [--clients 32]

Starts the server on a run as a process of its own and asks it from this one, in a closed loop: each client
has one connection and sends its next request when it has the answer to the last. Histories are those of the
run's dataset, cut at a random place, for a random domain. In the middle the model is loaded anew (SIGHUP).
Writes results/load.md and .json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, record, sentence

from hafvt.data.dataset import Dataset
from hafvt.files import read_json

BODIES = 4000  # different requests


def main() -> None:
    parser = argparse.ArgumentParser(description="Asks a server under load.")
    parser.add_argument("run", type=Path, help="a finished run whose dataset is at hand")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=32)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "hafvt", "serve", str(arguments.run), "--port", str(port)]
    server = subprocess.Popen(command)
    try:
        report = asyncio.run(
            measure(server, port, requests(arguments.run), arguments.clients, arguments.seconds)
        )
    finally:
        server.send_signal(signal.SIGTERM)
        found_exit = server.wait(60)
    report |= {"exit": found_exit, "clients": arguments.clients, "machine": describe()}
    report["run"] = {key: read_json(arguments.run / "model.json")[key] for key in ("model", "config")}
    text = markdown(report)
    record("load", text, report)
    print(text)


def requests(run: Path) -> list[bytes]:
    """Returns whole requests, headers and all."""
    data = Dataset.open(read_json(run / "model.json")["data"])
    ids = data.item_table["item_id"].to_list()
    chance, report = random.Random(0), []
    for _ in range(BODIES):
        user = chance.randrange(data.num_users)
        start, stop = int(data.offsets[user]), int(data.offsets[user + 1])
        history = [ids[n] for n in data.items[start : chance.randint(start + 1, stop)]]
        body = json.dumps({"history": history, "domain": chance.choice(data.domains).name}).encode()
        head = "POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        report.append(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return report


class Client(asyncio.Protocol):
    """One connection that always has one request under way, until `stop`."""

    def __init__(self, sent: list[bytes], seed: int) -> None:
        self.sent, self.chance = sent, random.Random(seed)
        self.seconds: list[float] = []
        self.errors: list[str] = []
        self.got, self.stop, self.done = b"", False, asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Begins."""
        self.transport = transport
        self.send()

    def send(self) -> None:
        """Sends a request."""
        self.begun = time.perf_counter()
        self.transport.write(self.chance.choice(self.sent))

    def data_received(self, data: bytes) -> None:
        """Reads an answer, and sends the next request when it is whole."""
        self.got += data
        head, blank, body = self.got.partition(b"\r\n\r\n")
        if not blank:
            return
        length = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1])  # type: ignore[index]
        if len(body) < length:
            return
        self.seconds.append(time.perf_counter() - self.begun)
        if not head.startswith(b"HTTP/1.1 200") or b'"ranked_by":"model"' not in body:
            self.errors.append(self.got[:200].decode())
        self.got = b""
        if self.stop:
            self.transport.close()
        else:
            self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends."""
        if not self.stop:
            self.errors.append(f"connection lost: {exc}")
        self.done.set_result(None)


async def measure(
    server: subprocess.Popen[bytes], port: int, sent: list[bytes], clients: int, seconds: float
) -> dict[str, Any]:
    """Returns what was measured."""
    loop = asyncio.get_running_loop()
    while not await ready(port):
        if server.poll() is not None:
            sys.exit(f"the server ended with {server.returncode}")
        await asyncio.sleep(0.2)
    memory = []
    begun, cpu = time.perf_counter(), cpu_seconds(server.pid)
    crowd = [
        (await loop.create_connection(lambda n=n: Client(sent, n), "127.0.0.1", port))[1]  # type: ignore[misc]
        for n in range(clients)
    ]
    for tenth in range(10):
        await asyncio.sleep(begun + (tenth + 1) * seconds / 10 - time.perf_counter())
        memory.append(resident_mib(server.pid))
        if tenth == 4:
            server.send_signal(signal.SIGHUP)
    took, cpu = time.perf_counter() - begun, cpu_seconds(server.pid) - cpu
    for client in crowd:
        client.stop = True
    await asyncio.gather(*(client.done for client in crowd))
    times = np.concatenate([client.seconds for client in crowd])
    errors = [error for client in crowd for error in client.errors]
    reloads = int(re.search(r'outcome="ok"} (\d+)', await metrics(port))[1])  # type: ignore[index]
    return {
        "seconds": took,
        "requests": len(times),
        "per_second": len(times) / took,
        "milliseconds": {f"p{q}": float(1e3 * np.percentile(times, q)) for q in (50, 95, 99, 100)},
        "errors": len(errors),
        "first_errors": errors[:3],
        "reloads": reloads,
        "resident_mib": memory,
        "server_cores": cpu / took,
    }


async def send_request(port: int, path: str) -> str:
    """Returns a whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.decode()


async def ready(port: int) -> bool:
    try:
        return (await send_request(port, "/ready")).startswith("HTTP/1.1 200")
    except OSError:
        return False


async def metrics(port: int) -> str:
    return await send_request(port, "/metrics")


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 2**10  # type: ignore[index]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def markdown(report: dict[str, Any]) -> str:
    """Returns the report."""
    times, memory = report["milliseconds"], report["resident_mib"]
    rows = [
        ("requests a second", f"{report['per_second']:,.0f}"),
        ("milliseconds: half, 95 %, 99 %, all within", " / ".join(f"{t:.0f}" for t in times.values())),
        ("requests", f"{report['requests']:,}"),
        ("errors", str(report["errors"])),
        ("reloads meanwhile", str(report["reloads"])),
        ("resident MiB at a tenth, half, end", f"{memory[0]:.0f} / {memory[4]:.0f} / {memory[-1]:.0f}"),
        ("cores that the server kept busy", f"{report['server_cores']:.2f}"),
        ("exit status after SIGTERM", str(report["exit"])),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""# Serving under load

`python benchmarks/load.py RUN --seconds {report["seconds"]:.0f} --clients {report["clients"]}`

{sentence(report["machine"])}
The load comes from the same machine: {report["clients"]} clients in a closed loop, `POST /recommend` for
histories of real people, ten items each. Model: `{report["run"]["model"]}`, loaded anew in the middle.

| | |
| --- | ---: |
{table}
"""


if __name__ == "__main__":
    main()
