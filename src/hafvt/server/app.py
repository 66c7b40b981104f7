"""The application: routes onto a live model. `hafvt.server.serve` runs it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from hafvt.errors import HafvtError
from hafvt.server import schemas as wire
from hafvt.server.batching import Batcher, BusyError
from hafvt.server.manager import LoadedModel, ModelManager, ModelSource
from hafvt.server.middleware import SecurityMiddleware
from hafvt.server.prometheus import Metrics
from hafvt.server.responses import (
    BatchKey,
    answer,
    item_json,
    items_json,
    max_batch_size,
    model_json,
    people_json,
    person_json,
)

STATIC = Path(__file__).with_name("static")
PICTURE_AGE_S = 3600  # how long browsers keep a picture without asking again

Text = Annotated[str, Query(max_length=200)]
Count = Annotated[int, Query(ge=1, le=wire.MOST)]
SIDES = (160, 320)  # pixels, of pictures
Side = Annotated[int, Query(json_schema_extra={"enum": list(SIDES)}, description="longest side in pixels")]
Offset = Annotated[int, Query(ge=0, le=10**9)]


@dataclass(frozen=True)
class Settings:
    """How a server behaves.

    Attributes:
        api_key: what callers must know; None lets everybody in.
        hosts: the names that callers may know the server by; none means any.
        cors_origins: pages of these origins may call the server from a browser.
        queue: how many questions may wait.
        timeout: seconds until a question is given up.
    """

    api_key: str | None = None
    hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    queue: int = 1024
    timeout: float = 10.0


class Json(Response):
    """A JSON answer, compact."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Returns the bytes."""
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
            errors="replace"
        )


def create_app(source: ModelSource, settings: Settings | None = None) -> FastAPI:
    """Returns the application; it loads the model when it starts.

    Args:
        source: opens the model.
        settings: how it behaves.
    """
    settings = settings or Settings()
    metrics = Metrics()
    models = ModelManager(source, metrics)
    batcher = Batcher(
        answer, max_batch_size=max_batch_size, limit=settings.queue, observe=metrics.batches.observe
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(batcher.run()), asyncio.create_task(models.run())]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    app = FastAPI(
        title="hafvt",
        description="Recommends across domains and says why. Errors are JSON: what is wrong and the remedy.",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from another host
        redoc_url=None,
        responses={
            code: {"model": wire.Error} for code in (400, 401, 404, 408, 413, 415, 421, 422, 429, 503, 504)
        },
    )
    app.state.models = models
    app.add_middleware(
        SecurityMiddleware,
        metrics=metrics,
        api_key=settings.api_key,
        hosts=settings.hosts,
        shared=bool(settings.cors_origins),
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key"],
        )
    add_error_handlers(app)

    def live() -> LoadedModel:
        if models.live is None:
            raise HTTPException(503, "the model is being loaded: try again soon", {"Retry-After": "1"})
        return models.live

    async def ask(key: BatchKey, question: wire.Question) -> Json:
        try:
            async with asyncio.timeout(settings.timeout):
                return Json(await batcher.ask(key, question))
        except TimeoutError:
            said = f"no answer within {settings.timeout:g} s: try again, or with a shorter history"
            raise HTTPException(504, said) from None

    @app.get("/health", response_model=wire.Health)
    async def health() -> Response:
        """Says that the process lives."""
        return Json({"status": "ok"})

    @app.get("/ready", response_model=wire.Ready)
    async def ready() -> Response:
        """Says whether there is a model that answers; 503 where not."""
        now = live()
        return Json(
            {
                "status": "ready",
                "model": now.recommender.scorer.name,
                "domains": now.recommender.domains,
                "items": len(now.recommender.catalog.train_counts),
                "loaded": now.loaded,
            }
        )

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Counters for Prometheus."""
        items = len(models.live.recommender.catalog.train_counts) if models.live else 0
        gauges = {
            "hafvt_queue_depth": ("Questions waiting.", batcher.depth),
            "hafvt_items": ("Items of the catalog.", items),
            "hafvt_ready": ("Whether a model answers.", models.live is not None),
        }
        return Response(metrics.text(gauges), media_type="text/plain; version=0.0.4")

    @app.get("/model", response_model=wire.Model)
    async def model() -> Response:
        """Tells what is served."""
        return Json(model_json(live()))

    @app.post("/recommend", response_model=wire.Recommended)
    async def recommend(question: wire.Recommend) -> Response:
        """Recommends the k best items of a domain for a history."""
        now = live()
        now.recommender.catalog.domain_index(question.domain)
        return await ask(BatchKey(now, question.domain, question.seen, question.shares), question)

    @app.post("/explain", response_model=wire.Explained)
    async def explain(question: wire.Explain) -> Response:
        """Tells why an item has its score for a history."""
        now = live()
        item_number(now, question.item)
        return await ask(BatchKey(now), question)

    @app.get("/items", response_model=wire.Items)
    async def search(
        query: Text = "", domain: Text | None = None, limit: Count = 24, offset: Offset = 0
    ) -> Response:
        """Searches titles and ids: all words must begin a word, the most popular first."""
        return Json(items_json(live(), query, domain, limit, offset))

    @app.get("/items/{item_id:path}", response_model=wire.Item)
    async def item(item_id: str) -> Response:
        """Tells of one item."""
        now = live()
        return Json(item_json(now.recommender.catalog.item(item_number(now, item_id))))

    @app.get(
        "/pictures/{item_id:path}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}}
    )
    async def picture(request: Request, item_id: str, side: Side = SIDES[0]) -> Response:
        """Returns an item's picture as a JPEG."""
        now = live()
        if side not in SIDES:
            raise HafvtError(f"side is {side}: give 160 or 320")
        made = await now.pictures.get(item_number(now, item_id), side)
        if made is None:
            raise HTTPException(404, "this item has no picture")
        headers = {"ETag": made.etag, "Cache-Control": f"private, max-age={PICTURE_AGE_S}"}
        if made.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(made.jpeg, media_type="image/jpeg", headers=headers)

    @app.get("/people", response_model=wire.People)
    async def people(limit: Count = 20, offset: Offset = 0) -> Response:
        """Lists people of the dataset, where it is at hand."""
        return Json(people_json(live(), limit, offset))

    @app.get("/people/{user_id:path}", response_model=wire.Person)
    async def person(user_id: str) -> Response:
        """Tells what a person met."""
        found = person_json(live(), user_id)
        if found is None:
            raise HTTPException(404, "no such person: /people lists them")
        return Json(found)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """The page for people."""
        index = STATIC / "index.html"
        if not index.exists():
            raise HTTPException(
                404, "this installation has no page; /openapi.json tells what the server can do"
            )
        return FileResponse(index)

    if STATIC.is_dir():
        app.mount("/static", StaticFiles(directory=STATIC))
    return app


def item_number(live: LoadedModel, item_id: str) -> int:
    """Returns the number of an item.

    Raises:
        HTTPException: 404, there is none.
    """
    number = live.recommender.catalog.index_of(item_id)
    if number is None:
        raise HTTPException(404, f"no item {item_id[:80]!r} in the catalog: /items finds those there are")
    return number


def add_error_handlers(app: FastAPI) -> None:
    """Makes every error one line of JSON."""

    @app.exception_handler(HafvtError)
    async def mendable(request: Request, error: HafvtError) -> Response:
        return Json({"error": str(error)}, 422)

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> Response:
        return Json({"error": "too many requests are waiting: try again soon"}, 429, {"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        said = first["msg"]
        if first["type"] == "json_invalid":
            said = f"not JSON ({first['ctx']['error']})"
        return Json(
            {"error": f"{place[:100]}: {said[:200]}; /openapi.json describes what is understood"}, 422
        )

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        said = {
            "Not Found": "there is nothing at this address: /openapi.json tells what there is",
            "Method Not Allowed": f"{request.method} is not for this address: /openapi.json tells what is",
            "There was an error parsing the body": "the body cannot be read as JSON: send UTF-8, less deep",
        }.get(error.detail, error.detail)
        return Json({"error": said}, error.status_code, error.headers)
