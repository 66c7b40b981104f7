"""Micro-batching: requests that wait at the same time are answered together, off the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.exceptions import HTTPException

PendingRequest = tuple[Any, asyncio.Future[Any]]


class BusyError(HTTPException):
    """Too many requests are waiting."""

    def __init__(self) -> None:
        super().__init__(429, "too many requests are waiting: try again soon", {"Retry-After": "1"})


class Batcher:
    """Gathers requests of one key into batches; a single thread answers batch after batch, keys in turns.

    While a batch is being answered, the next one gathers. Batches grow with the load.

    Args:
        answer_batch: (key, requests) -> an answer to each request; runs in the thread.
        max_batch_size: key -> the largest number of its requests in a batch.
        queue_size: the largest number of requests that wait, over all keys.
        timeout: seconds until a request is given up.
        observe_size: called with the size of each batch.
    """

    def __init__(
        self,
        answer_batch: Callable[[Any, list[Any]], Sequence[Any]],
        *,
        max_batch_size: Callable[[Any], int],
        queue_size: int,
        timeout: float,
        observe_size: Callable[[int], None],
    ) -> None:
        self.answer_batch, self.max_batch_size = answer_batch, max_batch_size
        self.queue_size, self.timeout, self.observe_size = queue_size, timeout, observe_size
        self.depth = 0  # requests waiting, over all keys
        self._queues: dict[Hashable, deque[PendingRequest]] = {}
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")

    async def submit(self, key: Hashable, request: Any) -> Any:
        """Return the answer to a request, computed together with others of the same key.

        Raises:
            BusyError: `queue_size` requests are waiting.
            HTTPException: there is no answer within `timeout` seconds.
        """
        if self.depth >= self.queue_size:
            raise BusyError
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(key, deque()).append((request, future))
        self.depth += 1
        self._wake.set()
        try:
            return await asyncio.wait_for(future, self.timeout)
        except TimeoutError:
            message = f"no answer within {self.timeout:g} s: try again, or with a shorter history"
            raise HTTPException(504, message) from None

    async def run(self) -> None:
        """Answers requests until cancelled; the answers of the batch under way are then dropped."""
        try:
            while True:
                await self._wake.wait()
                key, batch = self._next_batch()
                if batch:
                    self.observe_size(len(batch))
                    await self._answer(key, batch)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _next_batch(self) -> tuple[Hashable, list[PendingRequest]]:
        """Return a key and requests of it, without those whose caller no longer waits."""
        if not self._queues:
            self._wake.clear()
            return None, []
        key = next(iter(self._queues))
        queue = self._queues.pop(key)
        batch = [queue.popleft() for _ in range(min(self.max_batch_size(key), len(queue)))]
        if queue:
            self._queues[key] = queue  # at the end, so that keys take turns
        self.depth -= len(batch)
        return key, [(request, future) for request, future in batch if not future.done()]

    async def _answer(self, key: Hashable, batch: list[PendingRequest]) -> None:
        """Answers a batch; if that fails, each of its requests alone, so that one failure harms no other."""
        loop = asyncio.get_running_loop()
        try:
            requests = [request for request, _ in batch]
            answers = await loop.run_in_executor(self._thread, self.answer_batch, key, requests)
        except Exception as error:
            if len(batch) > 1:
                for pending in batch:
                    await self._answer(key, [pending])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():  # else its caller no longer waits
                future.set_result(answer)
