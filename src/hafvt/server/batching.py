"""Questions that arrive at about the same time are answered together, off the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

logger = logging.getLogger("hafvt.server")


class BusyError(Exception):
    """So many questions are waiting that one more would wait in vain."""


class Batcher:
    """Gathers questions of one key into batches that a single thread answers, key after key.

    While a batch is being answered, the next one gathers: the busier, the larger, and nobody waits for a
    timer.

    Args:
        answer: (key, questions) -> an answer or an exception for each; runs in the thread.
        max_batch_size: how many questions of a key are answered together at most.
        limit: how many questions may wait.
        observe: is told the size of each batch.
    """

    def __init__(
        self,
        answer: Callable[[Any, list[Any]], Sequence[Any]],
        *,
        max_batch_size: Callable[[Any], int],
        limit: int,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.answer, self.max_batch_size, self.limit, self.observe = answer, max_batch_size, limit, observe
        self.waiting: dict[Hashable, deque[tuple[Any, asyncio.Future[Any]]]] = {}
        self.depth = 0  # questions waiting, over all keys
        self.wake = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="answers")

    async def ask(self, key: Hashable, question: Any) -> Any:
        """Returns the answer to a question.

        Raises:
            BusyError: too many are waiting.
        """
        if self.depth >= self.limit:
            raise BusyError
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(key, deque()).append((question, future))
        self.depth += 1
        self.wake.set()
        return await future

    async def run(self) -> None:
        """Answers until it is cancelled; what is being computed then is finished and thrown away."""
        try:
            while True:
                await self.wake.wait()
                key, batch = self.take()
                if batch:
                    self.observe(len(batch))
                    await self.answer_all(key, batch)
        finally:
            self.thread.shutdown(wait=False, cancel_futures=True)

    def take(self) -> tuple[Hashable, list[tuple[Any, asyncio.Future[Any]]]]:
        """Returns a key and questions of it that somebody still waits for; keys take turns."""
        if not self.waiting:
            self.wake.clear()
            return None, []
        key = next(iter(self.waiting))
        line = self.waiting.pop(key)
        taken = [line.popleft() for _ in range(min(self.max_batch_size(key), len(line)))]
        if line:
            self.waiting[key] = line  # at the end
        self.depth -= len(taken)
        return key, [(question, future) for question, future in taken if not future.done()]

    async def answer_all(self, key: Hashable, batch: list[tuple[Any, asyncio.Future[Any]]]) -> None:
        """Answers a batch; where that fails, each question alone, so that a bad one harms no other."""
        loop = asyncio.get_running_loop()
        try:
            questions = [question for question, _ in batch]
            answers = await loop.run_in_executor(self.thread, self.answer, key, questions)
        except Exception as error:
            if len(batch) > 1:
                logger.warning("a batch failed (%s): its questions are answered one by one", error)
                for one in batch:
                    await self.answer_all(key, [one])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():  # nobody waits for it any more
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
