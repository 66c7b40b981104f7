"""The application: routes, middleware, model and batcher put together. `hafvt.server.serve` runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from hafvt.errors import HafvtError
from hafvt.server import routes
from hafvt.server.answers import answer_batch, max_batch_size
from hafvt.server.batching import Batcher
from hafvt.server.history_store import HistoryStore, MemoryHistoryStore
from hafvt.server.manager import ModelManager, ModelSource, served_names
from hafvt.server.middleware import SecurityMiddleware, error_response
from hafvt.server.page_files import page_router
from hafvt.server.prometheus import ServerMetrics
from hafvt.server.schemas import ErrorResponse, explain_error

API_VERSION = "2"
ROUTERS = (routes.router,)
ERROR_STATUSES = (400, 401, 404, 405, 408, 413, 415, 421, 422, 429, 500, 503, 504)


def create_app(
    *sources: ModelSource,
    api_key: str | None = None,
    allowed_hosts: tuple[str, ...] = (),
    cors_origins: tuple[str, ...] = (),
    queue_size: int = 1024,
    timeout: float = 10.0,
    history_store: HistoryStore | None = None,
) -> FastAPI:
    """Load the models and return the application.

    Args:
        sources: where the models are read from, at least one; requests that name none get the first.
        api_key: the key that callers must send; None answers everybody.
        allowed_hosts: the values of the Host header, without port, that are answered; empty answers all.
        cors_origins: origins whose pages may call the server from a browser.
        queue_size: the largest number of requests that wait for the model.
        timeout: seconds until a request is answered with status 504.
        history_store: keeps the events that callers post; default: in memory.

    Raises:
        HafvtError: a model cannot be loaded.
    """
    metrics, store = ServerMetrics(), history_store or MemoryHistoryStore()
    managers = [ModelManager(source, metrics) for source in sources]
    models = dict(zip(served_names(managers), managers, strict=True))
    batcher = Batcher(
        answer_batch,
        max_batch_size=max_batch_size,
        queue_size=queue_size,
        timeout=timeout,
        observe_size=metrics.batch_size.observe,
    )
    metrics.queue_depth.set_function(lambda: batcher.depth)
    metrics.ready.set(1)
    metrics.num_items.set_function(lambda: len(managers[0].current.recommender.catalog))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(task) for task in (batcher.run(), *(m.run() for m in managers))]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await store.close()

    app = FastAPI(
        title="hafvt",
        description="Cross-domain recommendations and their explanations. Errors are JSON, in one line.",
        version=API_VERSION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from another host
        redoc_url=None,
        responses={status: {"model": ErrorResponse} for status in ERROR_STATUSES},
    )
    app.state.metrics, app.state.models, app.state.batcher = metrics, models, batcher
    app.state.history_store = store
    app.add_middleware(
        SecurityMiddleware,
        metrics=metrics,
        api_key=api_key,
        allowed_hosts=allowed_hosts,
        cross_origin=bool(cors_origins),
    )
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key"],
        )
    add_error_handlers(app)
    for router in (*ROUTERS, page_router()):
        app.include_router(router)
    return app


def add_error_handlers(app: FastAPI) -> None:
    """Makes every error of a route one line of JSON."""

    @app.exception_handler(HafvtError)
    async def on_user_error(request: Request, error: HafvtError) -> Response:
        return error_response(422, str(error))

    @app.exception_handler(RequestValidationError)
    async def on_invalid_request(request: Request, error: RequestValidationError) -> Response:
        return error_response(
            422, f"{explain_error(error.errors()[0])}; /openapi.json describes the requests"
        )

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        message = {
            "Not Found": "there is no such address: /openapi.json lists all addresses",
            "Method Not Allowed": f"this address does not take {request.method}: see /openapi.json",
            "There was an error parsing the body": "the body is no JSON: send UTF-8, with less nesting",
        }.get(error.detail, error.detail)
        return error_response(error.status_code, message, error.headers)
