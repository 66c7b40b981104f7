"""Where Optuna keeps the study of a search: study.db in its folder, or a storage that many machines share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from hafvt.errors import ArgumentError, HafvtError, missing_package

try:
    import optuna
    import sqlalchemy
    from optuna.storages import (
        BaseStorage,
        GrpcStorageProxy,
        JournalStorage,
        RDBStorage,
        RetryHeartbeatStaleTrialCallback,
    )
    from optuna.storages._heartbeat import BaseHeartbeat
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, TrialState
    from sqlalchemy.exc import SQLAlchemyError
except ModuleNotFoundError as error:
    raise missing_package("tune", str(error.name)) from None

HEARTBEAT_S = 10
GRACE_S = 30  # seconds without a heartbeat after which a trial is queued again
CONNECT_S = 30.0  # seconds until a gRPC proxy must answer
PROXY = "grpc://"
FORMS = "give sqlite:///FILE, another database URL, grpc://HOST:PORT, or the path of a journal file"


class _DatabaseStorage(RDBStorage):
    """Optuna's storage. It skips a heartbeat that fails; the next access to the storage fails as well."""

    def record_heartbeat(self, trial_id: int) -> None:
        with suppress(optuna.exceptions.StorageInternalError, SQLAlchemyError):
            super().record_heartbeat(trial_id)


class _Heartbeat(BaseHeartbeat):
    """Optuna's heartbeat for its storages that have none: an attribute of the trial that changes.

    A trial is stale if this process has seen no change for GRACE_S. The clocks of machines may differ.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._changes: dict[int, tuple[float | None, float]] = {}  # by trial: the attribute, when it was new
        super().__init__(*args, **kwargs)

    def record_heartbeat(self, trial_id: int) -> None:
        with suppress(Exception):  # the next access to the storage fails as well
            self.set_trial_user_attr(trial_id, "heartbeat", time.time())  # type: ignore[attr-defined]

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        stale, now = [], time.monotonic()
        running: list[FrozenTrial] = self.get_all_trials(  # type: ignore[attr-defined]
            study_id, deepcopy=False, states=(TrialState.RUNNING,)
        )
        for trial in running:
            heartbeat = trial.user_attrs.get("heartbeat")
            previous, since = self._changes.get(trial._trial_id, (None, now))
            if heartbeat != previous or trial._trial_id not in self._changes:
                self._changes[trial._trial_id] = heartbeat, now
            elif now - since > GRACE_S:
                stale.append(trial._trial_id)
        return stale

    def get_heartbeat_interval(self) -> int | None:
        return HEARTBEAT_S

    def get_heartbeat_stale_trial_callback(self) -> Callable[[optuna.Study, FrozenTrial], None] | None:
        return RetryHeartbeatStaleTrialCallback()


class _JournalStorage(_Heartbeat, JournalStorage):
    """A journal file with heartbeats."""


class _ProxyStorage(_Heartbeat, GrpcStorageProxy):
    """A gRPC proxy with heartbeats."""


@dataclass(frozen=True)
class StudyStorage:
    """The storage of a study.

    Attributes:
        out: folder of the search.
        url: as in `hafvt tune --storage`; None for study.db in the folder.
    """

    out: Path
    url: str | None = None

    def __post_init__(self) -> None:
        """Check the URL.

        Raises:
            ArgumentError: no storage has such a URL.
        """
        if self.url is None or self.url.startswith(PROXY):
            _, _, port = (self.url or ":1").rpartition(":")
            if not port.isdigit() or not 0 < int(port) < 2**16:
                raise ArgumentError(f"--storage {self.url}: give grpc://HOST:PORT")
        elif not self.url.strip() or self.url.startswith(("redis", "valkey")):
            raise ArgumentError(f"--storage {self.label}: {FORMS}")  # Optuna unpickles what Redis holds
        elif "://" in self.url:
            try:
                parts = sqlalchemy.make_url(self.url)
            except SQLAlchemyError:
                raise ArgumentError(f"--storage: this is no URL: {FORMS}") from None
            if parts.get_backend_name() == "sqlite" and parts.database in (None, "", ":memory:"):
                raise ArgumentError(f"--storage {self.url}: name a file, as in sqlite:///study.db")
        if self.url is not None and self.file is not None:
            if self.file.is_dir():
                raise ArgumentError(f"--storage {self.url}: this is a folder: name a file")
            if not self.file.absolute().parent.is_dir():
                raise ArgumentError(f"--storage {self.url}: there is no folder {self.file.absolute().parent}")

    @property
    def label(self) -> str:
        """The name of the storage in messages, without the password."""
        if self.url is None:
            return str(self.out / "study.db")
        try:
            return str(sqlalchemy.make_url(self.url)) if "://" in self.url else self.url
        except SQLAlchemyError:
            return self.url.partition("://")[0]

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database or a journal; None for a server."""
        if self.url is None:
            return self.out / "study.db"
        if "://" not in self.url:
            return Path(self.url)
        url = None if self.url.startswith(PROXY) else sqlalchemy.make_url(self.url)
        return None if url is None or url.get_backend_name() != "sqlite" else Path(str(url.database))

    @cached_property
    def lock(self) -> FileLock:
        """A lock of the study or, where that is on a server, of the folder.

        SQLite does not lock rows, so that two workers could take the same queued trial.
        """
        if self.url is None or self.file is None:
            return FileLock(self.out / ".study.lock")
        return FileLock(self.file.with_name(f".{self.file.name}.lock"))

    def open(self) -> BaseStorage:
        """Return Optuna's storage.

        Raises:
            HafvtError: it cannot be opened.
        """
        if self.url is None:
            return self._database(f"sqlite:///{self.out.resolve() / 'study.db'}")
        try:
            if "://" not in self.url:
                return _JournalStorage(JournalFileBackend(self.url))
            if not self.url.startswith(PROXY):
                return self._database(self.url)
            host, _, port = self.url.removeprefix(PROXY).rpartition(":")
            proxy = _ProxyStorage(host=host, port=int(port))
            proxy.wait_server_ready(CONNECT_S)
            return proxy
        except ImportError as error:
            name = getattr(error.__cause__, "name", None) or error.name or "its driver"
            package = "grpcio protobuf" if self.url.startswith(PROXY) else name
            raise HafvtError(f"--storage {self.label} needs a package: pip install {package}") from None
        except Exception as error:  # of SQLAlchemy and its drivers, Optuna and grpc; they have no common base
            reason = " ".join(str(getattr(error, "orig", None) or error).split())[:200] or repr(error)
            raise HafvtError(
                f"--storage {self.label} cannot be opened ({reason}): check the address and the server"
            ) from None

    def _database(self, url: str) -> RDBStorage:
        """Return the storage of a database."""
        is_file = sqlalchemy.make_url(url).get_backend_name() == "sqlite"
        return _DatabaseStorage(
            url,
            engine_kwargs={"connect_args": {"timeout": 60}} if is_file else {"pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT_S,
            grace_period=GRACE_S,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )

    @contextmanager
    def explained_errors(self) -> Iterator[None]:
        """Turn errors of the database or the proxy into a HafvtError of one line."""
        try:
            yield
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not _is_of_storage(cause):
                cause = cause.__cause__ or cause.__context__  # Optuna raises its own errors after these
            if cause is None or isinstance(error, HafvtError):
                raise
            reason = " ".join(str(getattr(cause, "orig", cause)).split("\n")[0].split())[:200]
            remedy = "check its permissions and the free space, or restore it"
            if "full" in reason:
                remedy = "make room"
            elif self.file is None:
                remedy = "check the server"
            raise HafvtError(
                f"{self.label}: {reason}: {remedy}, and repeat the command, which keeps finished trials"
            ) from None


def _is_of_storage(error: BaseException) -> bool:
    """Return whether an error is of a database or of a gRPC proxy."""
    return isinstance(error, SQLAlchemyError) or type(error).__module__.startswith("grpc")
