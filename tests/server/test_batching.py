"""Batching: every request gets its own answer, and none is lost."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import pytest

from hafvt.server.batching import Batcher, BusyError


def run_with_batcher(batcher, scenario):
    """Returns the result of `scenario(batcher)`, run while the batcher answers."""

    async def main():
        runner = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(scenario(batcher), 20)
        finally:
            runner.cancel()

    return asyncio.run(main())


def make_batcher(answer_batch, **options):
    defaults = {"max_batch_size": lambda key: 3, "queue_size": 100, "timeout": 10}
    return Batcher(answer_batch, **{**defaults, "observe_size": lambda size: None, **options})


def test_batcher_busy_gathers_batches_and_serves_keys_in_turn():
    batches, gate = [], threading.Event()

    def answer_batch(key, requests):
        gate.wait(10)
        batches.append((key, list(requests)))
        return [request * 10 for request in requests]

    async def scenario(batcher):
        first = asyncio.create_task(batcher.submit("a", 0))
        await asyncio.sleep(0.05)  # the first is being answered, the others wait
        others = [asyncio.create_task(batcher.submit(key, n)) for key, n in [("a", 1), ("b", 2)] * 4]
        await asyncio.sleep(0.05)
        assert batcher.depth == 8
        gate.set()
        return await asyncio.gather(first, *others)

    sizes = Counter()
    batcher = make_batcher(answer_batch, observe_size=lambda size: sizes.update([size]))
    assert run_with_batcher(batcher, scenario) == [0, *[10, 20] * 4]
    assert [(key, len(batch)) for key, batch in batches] == [("a", 1), ("a", 3), ("b", 3), ("a", 1), ("b", 1)]
    assert sizes == {1: 3, 3: 2}
    assert batcher.depth == 0


def test_batcher_failing_request_leaves_others_answered():
    gate = threading.Event()

    def answer_batch(key, requests):
        gate.wait(10)
        if 2 in requests:
            raise ValueError("two")
        return requests

    async def scenario(batcher):
        tasks = [asyncio.create_task(batcher.submit("a", n)) for n in range(5)]
        await asyncio.sleep(0.05)
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    batcher = make_batcher(answer_batch, max_batch_size=lambda key: 5)
    zero, one, two, *others = run_with_batcher(batcher, scenario)
    assert (zero, one, others) == (0, 1, [3, 4])
    assert isinstance(two, ValueError)


def test_batcher_full_queue_refuses_and_skips_canceled_requests():
    gate, answered = threading.Event(), []

    def answer_batch(key, requests):
        gate.wait(10)
        answered.extend(requests)
        return requests

    async def scenario(batcher):
        first = asyncio.create_task(batcher.submit("a", 0))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(batcher.submit("a", n)) for n in (1, 2)]
        await asyncio.sleep(0.05)
        with pytest.raises(BusyError):
            await batcher.submit("a", 3)
        waiting[0].cancel()
        gate.set()
        return await asyncio.gather(first, *waiting, return_exceptions=True)

    first, canceled, second = run_with_batcher(make_batcher(answer_batch, queue_size=2), scenario)
    assert (first, second) == (0, 2)
    assert isinstance(canceled, asyncio.CancelledError)
    assert answered == [0, 2]
