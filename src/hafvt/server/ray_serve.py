"""The server as a Ray Serve application, for those who have a Ray cluster: extras cluster, serve and onnx.

Example: serve run hafvt.server.ray_serve:build run=/shared/exports/hafvt replicas=2
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from hafvt.errors import missing_package
from hafvt.server.app import create_app
from hafvt.server.history_store import history_store_url, open_history_store
from hafvt.server.manager import ModelSource
from hafvt.server.middleware import API_KEY_VARIABLE

try:
    from ray import serve
except ModuleNotFoundError as error:
    raise missing_package("cluster", error.name or "ray") from None

MAX_REQUESTS = 128  # that a replica takes at a time, so that it can answer them in batches


class Settings(BaseModel):
    """The arguments of the application.

    Attributes:
        run: folder of a run or an export, at the same path on every machine or on a shared disk.
        data: as in `hafvt serve`.
        policies: as in `hafvt serve`.
        history_store: as in `hafvt serve`; "memory" only suits one replica.
        replicas: number of replicas.
        cpus: number of processors of each replica.
        queue: as in `hafvt serve`.
        timeout: as in `hafvt serve`.
    """

    model_config = ConfigDict(extra="forbid")

    run: str
    data: str | None = None
    policies: str | None = None
    history_store: str | None = None
    replicas: int = Field(2, ge=1, le=1000)
    cpus: float = Field(2.0, gt=0, le=256)
    queue: int = Field(1024, ge=1)
    timeout: float = Field(10.0, gt=0)


def build(settings: Settings) -> Any:
    """Return the application; HAFVT_API_KEY and HAFVT_HISTORY_STORE are read here, not by the replicas."""
    api_key = os.environ.get(API_KEY_VARIABLE)
    store = history_store_url(settings.history_store)

    def build_app() -> FastAPI:
        """Return the application of one replica."""
        return create_app(
            ModelSource(
                Path(settings.run),
                Path(settings.data) if settings.data else None,
                Path(settings.policies) if settings.policies else None,
            ),
            api_key=api_key,
            queue_size=settings.queue,
            timeout=settings.timeout,
            history_store=open_history_store(store),
        )

    replica = serve.deployment(
        serve.ingress(build_app)(),
        name="hafvt",
        num_replicas=settings.replicas,
        max_ongoing_requests=MAX_REQUESTS,
        ray_actor_options={
            "num_cpus": settings.cpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(max(1, int(settings.cpus) - 1))}},
        },
    )
    return replica.bind()
