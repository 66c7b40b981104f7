"""Questions are answered together, each with its own answer, and none is lost."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import pytest

from hafvt.server.batching import Batcher, BusyError


def with_batcher(batcher, work):
    """Runs `work(batcher)` while the batcher answers."""

    async def main():
        runner = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(work(batcher), 20)
        finally:
            runner.cancel()

    return asyncio.run(main())


def make(answer, **named):
    return Batcher(answer, **{"max_batch_size": lambda key: 3, "limit": 100, **named})


def test_what_waits_is_answered_together_and_keys_take_turns():
    batches, gate = [], threading.Event()

    def answer(key, questions):
        gate.wait(10)
        batches.append((key, list(questions)))
        return [question * 10 for question in questions]

    async def work(batcher):
        first = asyncio.create_task(batcher.ask("a", 0))
        await asyncio.sleep(0.05)  # it is being answered: the others wait meanwhile
        others = [asyncio.create_task(batcher.ask(key, n)) for key, n in [("a", 1), ("b", 2)] * 4]
        await asyncio.sleep(0.05)
        assert batcher.depth == 8
        gate.set()
        return await asyncio.gather(first, *others)

    sizes = Counter()
    batcher = make(answer, observe=lambda size: sizes.update([size]))
    assert with_batcher(batcher, work) == [0, *[10, 20] * 4]
    assert [(key, len(batch)) for key, batch in batches] == [("a", 1), ("a", 3), ("b", 3), ("a", 1), ("b", 1)]
    assert sizes == {1: 3, 3: 2}
    assert batcher.depth == 0


def test_a_bad_question_harms_no_other():
    gate = threading.Event()

    def answer(key, questions):
        gate.wait(10)
        if 2 in questions:
            raise ValueError("two")
        return [KeyError("three") if question == 3 else question for question in questions]

    async def work(batcher):
        tasks = [asyncio.create_task(batcher.ask("a", n)) for n in range(5)]
        await asyncio.sleep(0.05)
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    zero, one, two, three, four = with_batcher(make(answer, max_batch_size=lambda key: 5), work)
    assert (zero, one, four) == (0, 1, 4)
    assert isinstance(two, ValueError)
    assert isinstance(three, KeyError)


def test_beyond_the_bound_nobody_waits_and_those_who_left_cost_nothing():
    gate, asked = threading.Event(), []

    def answer(key, questions):
        gate.wait(10)
        asked.extend(questions)
        return questions

    async def work(batcher):
        first = asyncio.create_task(batcher.ask("a", 0))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(batcher.ask("a", n)) for n in (1, 2)]
        await asyncio.sleep(0.05)
        with pytest.raises(BusyError):
            await batcher.ask("a", 3)
        waiting[0].cancel()
        gate.set()
        return await asyncio.gather(first, *waiting, return_exceptions=True)

    first, left, stayed = with_batcher(make(answer, limit=2), work)
    assert (first, stayed) == (0, 2)
    assert isinstance(left, asyncio.CancelledError)
    assert asked == [0, 2]
