"""Events that callers post: what users chose since the dataset was prepared; in memory, Redis or Valkey."""

from __future__ import annotations

import logging
import os
import re
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from hafvt.errors import ArgumentError, HafvtError, missing_package
from hafvt.server.schemas import MAX_ID_LENGTH

logger = logging.getLogger("hafvt.server")

HISTORY_STORE_VARIABLE = "HAFVT_HISTORY_STORE"  # environment variable
MAX_EVENTS = 1000  # of each user; the oldest go first
MEMORY_BYTES = 256 * 2**20  # of all events in memory; the users who were active least recently go first
EVENT_BYTES, USER_BYTES = 150, 800  # memory that an event and a user take beside their ids
KEY_PREFIX = "hafvt:history:"
MAX_CONNECTIONS = 64
TIMEOUT_S = 2.0
SCHEMES = {"redis": "redis", "rediss": "rediss", "unix": "unix", "valkey": "redis", "valkeys": "rediss"}
"""By scheme of --history-store, the scheme that the Redis client knows."""


class Event(NamedTuple):
    """An item that a user chose, and when, in seconds since 1970."""

    item_id: str
    time: int


class HistoryStore(Protocol):
    """Keeps the last events of each user, at most MAX_EVENTS, in the order in which they were appended."""

    async def get(self, user_id: str) -> list[Event]:
        """Return the events of a user, oldest first.

        Raises:
            HTTPException: the store does not answer.
        """

    async def append(self, user_id: str, events: Sequence[Event]) -> None:
        """Add events of a user, oldest first.

        Raises:
            HTTPException: the store does not answer.
        """

    async def check(self) -> None:
        """Raise HafvtError if the store cannot be reached."""

    async def close(self) -> None:
        """Close the connections."""


class MemoryHistoryStore:
    """Events in the memory of this process, of bounded size; they are lost when it stops."""

    def __init__(self, max_bytes: int = MEMORY_BYTES) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._events: OrderedDict[str, deque[Event]] = OrderedDict()  # least recently active user first

    async def get(self, user_id: str) -> list[Event]:
        """See `HistoryStore.get`."""
        return list(self._events.get(user_id, ()))

    async def append(self, user_id: str, events: Sequence[Event]) -> None:
        """See `HistoryStore.append`."""
        if user_id not in self._events:
            self._events[user_id] = deque()
            self.num_bytes += USER_BYTES + 4 * len(user_id)
        self._events.move_to_end(user_id)
        history = self._events[user_id]
        for event in events:
            history.append(event)
            self.num_bytes += _size(event)
            if len(history) > MAX_EVENTS:
                self.num_bytes -= _size(history.popleft())
        while self.num_bytes > self.max_bytes:
            oldest, removed = self._events.popitem(last=False)
            self.num_bytes -= USER_BYTES + 4 * len(oldest) + sum(map(_size, removed))

    async def check(self) -> None:
        """See `HistoryStore.check`."""

    async def close(self) -> None:
        """See `HistoryStore.close`."""


def _size(event: Event) -> int:
    """Return about how many bytes of memory an event takes."""
    return EVENT_BYTES + 4 * len(event.item_id)


class RedisHistoryStore:
    """Events in Redis or Valkey, which several servers share: a list for each user.

    An entry is the time, a blank and the item id. Entries of another form are skipped.

    Args:
        url: such as redis://HOST:6379/0, with user and password if need be.
    """

    def __init__(self, url: str) -> None:
        try:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import ConnectionError as RedisConnectionError
            from redis.exceptions import RedisError
        except ModuleNotFoundError as error:
            raise missing_package("redis", error.name or "redis") from None
        self._error: type[Exception] = RedisError
        scheme, separator, rest = url.partition("://")
        self.label = f"{scheme}://{rest.rpartition('@')[2]}"  # without the password
        try:
            if urlsplit(url).port == 0:
                raise ValueError("port 0")
            pool = BlockingConnectionPool.from_url(
                SCHEMES[scheme] + separator + rest,
                max_connections=MAX_CONNECTIONS,
                timeout=TIMEOUT_S,
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                decode_responses=True,
                encoding_errors="replace",
                retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            )
        except (ValueError, TypeError) as error:
            message = f"--history-store {self.label}: {error}: give it as redis://HOST:PORT/0"
            raise ArgumentError(message) from None
        self._client: Any = Redis.from_pool(pool)  # closes the connections of the pool, too

    async def get(self, user_id: str) -> list[Event]:
        """See `HistoryStore.get`."""
        try:
            entries = await self._client.lrange(KEY_PREFIX + user_id, -MAX_EVENTS, -1)
        except (self._error, OSError) as error:
            raise self._unavailable(error) from None
        return [event for entry in entries if (event := _parse(entry)) is not None]

    async def append(self, user_id: str, events: Sequence[Event]) -> None:
        """See `HistoryStore.append`."""
        entries = [f"{event.time} {event.item_id}" for event in events[-MAX_EVENTS:]]
        try:
            async with self._client.pipeline(transaction=True) as pipeline:
                pipeline.rpush(KEY_PREFIX + user_id, *entries)
                pipeline.ltrim(KEY_PREFIX + user_id, -MAX_EVENTS, -1)
                await pipeline.execute()
        except (self._error, OSError) as error:
            raise self._unavailable(error) from None

    async def check(self) -> None:
        """See `HistoryStore.check`."""
        try:
            await self._client.ping()
        except (self._error, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise HafvtError(
                f"--history-store {self.label} cannot be used ({reason}): check its address and that it runs"
            ) from None

    async def close(self) -> None:
        """See `HistoryStore.close`."""
        await self._client.aclose()

    def _unavailable(self, error: Exception) -> HTTPException:
        """Return the error of a request that needs the store; log its cause."""
        logger.error("the history store failed: %s", " ".join(str(error).split())[:200])
        message = "the history store does not answer: try again soon, or send a history"
        return HTTPException(503, message, {"Retry-After": "1"})


def _parse(entry: str) -> Event | None:
    """Return the event of an entry in Redis; None if others wrote it."""
    match = re.fullmatch(r"(\d{1,12}) (.+)", entry, re.DOTALL)
    return Event(match[2], int(match[1])) if match and len(match[2]) <= MAX_ID_LENGTH else None


def history_store_url(option: str | None) -> str:
    """Return the store that `hafvt serve --history-store` names, or else the environment; default: memory."""
    return option or os.environ.get(HISTORY_STORE_VARIABLE) or "memory"


def open_history_store(url: str) -> HistoryStore:
    """Return a store, see `history_store_url`.

    Raises:
        HafvtError: there is no such store, or a package is missing.
    """
    if url == "memory":
        return MemoryHistoryStore()
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ArgumentError(
            "--history-store: give memory, or redis://HOST:PORT/0 of a Redis or Valkey server"
        )
    return RedisHistoryStore(url)
