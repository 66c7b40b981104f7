"""The routes, one function each.

A route in a file of its own: make an `APIRouter` there as here, and list it in `ROUTERS` of `app.py`.
"""

from __future__ import annotations

import hashlib
import time
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from hafvt.data.attributes import attribute_names
from hafvt.errors import HafvtError
from hafvt.inference.policies import choose_policy
from hafvt.inference.rules import NO_RULES, Rules, make_rules
from hafvt.server import schemas
from hafvt.server.answers import BatchKey
from hafvt.server.history_store import Event, HistoryStore
from hafvt.server.manager import LoadedModel

PICTURE_MAX_AGE_S = 3600  # how long browsers use a picture without asking for a newer one
MAX_USER_HISTORY = 1000  # items of /users/{user_id}
MAX_LISTED_HISTORY = 12  # items of each user of /users

Text = Annotated[str, Query(max_length=200)]
Limit = Annotated[int, Query(ge=1, le=schemas.MAX_ITEMS)]
Offset = Annotated[int, Query(ge=0, le=10**9)]
Side = Annotated[int, Query(json_schema_extra={"enum": [160, 320]}, description="longest side in pixels")]

UserRequestType = TypeVar("UserRequestType", bound=schemas.UserRequest)

router = APIRouter()


async def model_name(
    request: Request,
    model: Annotated[str, Query(max_length=200, description="a served model, default: the first")] = "",
) -> str:
    """Return the name of the model that answers."""
    names = list(request.app.state.models)
    if model and model not in names:
        raise HafvtError(f"no model {model[:80]!r}: choose one of {', '.join(names)}")
    return model or names[0]


ModelName = Annotated[str, Depends(model_name)]


async def current_model(request: Request, name: ModelName) -> LoadedModel:
    """Return the model that answers."""
    model: LoadedModel = request.app.state.models[name].current
    return model


CurrentModel = Annotated[LoadedModel, Depends(current_model)]


async def history_store(request: Request) -> HistoryStore:
    """Return the store of events."""
    store: HistoryStore = request.app.state.history_store
    return store


CurrentStore = Annotated[HistoryStore, Depends(history_store)]


def item_index(model: LoadedModel, item_id: str) -> int:
    """Return the index of an item, or raise HTTPException 404 where there is no such item."""
    index = model.recommender.catalog.index_of(item_id)
    if index is None:
        raise HTTPException(404, f"no item {item_id[:80]!r} in the catalog: /items lists all items")
    return index


def user_index(model: LoadedModel, user_id: str) -> int | None:
    """Return the index of a user in the dataset; None where there is no such user or no dataset."""
    return None if model.users is None else model.users.index_of(user_id)


async def newer_ids(store: HistoryStore, model: LoadedModel, user_id: str) -> list[str]:
    """Return the item ids of a user's posted events, oldest first, without those that the dataset has.

    The dataset has the events up to the time of the user's last interaction in it.

    Raises:
        HTTPException: the history store does not answer.
    """
    events, user = await store.get(user_id), user_index(model, user_id)
    last = None if model.users is None or user is None else model.users.last_time(user)
    return [event.item_id for event in events if last is None or event.time > last]


async def with_history(body: UserRequestType, model: LoadedModel, store: HistoryStore) -> UserRequestType:
    """Return a request with the history of its user, if it names one.

    Raises:
        HTTPException: there is no such user, the dataset was damaged, or the history store does not answer.
    """
    if body.user_id is None:
        return body
    posted, user = await newer_ids(store, model, body.user_id), user_index(model, body.user_id)
    if user is None and not posted:
        reason = "this server has no dataset with users" if model.users is None else "no such user"
        raise HTTPException(
            404, f"{reason}: send a history, which may be empty, or post events; /users lists all users"
        )
    length = schemas.MAX_HISTORY_LENGTH
    earlier = [] if user is None or model.users is None else model.users.last_ids(user, length)
    return body.model_copy(update={"history": [*earlier, *posted][-length:]})


@router.get("/health")
async def health() -> schemas.HealthResponse:
    """Answers as long as the process runs."""
    return schemas.HealthResponse()


@router.get("/ready")
async def ready(model: CurrentModel) -> schemas.ReadyResponse:
    """Answers once a model is loaded: the server listens from then on."""
    recommender = model.recommender
    return schemas.ReadyResponse(
        model=recommender.scorer.name,
        domains=list(recommender.domains),
        num_items=len(recommender.catalog),
        loaded_at=model.loaded_at,
    )


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Return metrics for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/model")
async def describe_model(model: CurrentModel, request: Request) -> schemas.ModelResponse:
    """Describes a model and its domains, and names all served models."""
    scorer = model.recommender.scorer
    return schemas.ModelResponse(
        name=scorer.name,
        models=list(request.app.state.models),
        version=model.version,
        domains=[
            schemas.DomainResponse(name=d.name, num_items=len(d)) for d in model.recommender.catalog.domains
        ],
        sequences=list(scorer.sequence_names),
        modalities=list(scorer.modalities),
        max_length=scorer.max_length,
        can_explain=scorer.can_explain,
        attributes=attribute_names(model.recommender.catalog.table),
        has_users=model.users is not None,
        has_vectors=model.recommender.read_vectors is not None,
        policies=list(model.policies),
    )


@router.post("/recommend", response_model=schemas.RecommendResponse, response_model_exclude_unset=True)
async def recommend(
    body: schemas.RecommendRequest,
    name: ModelName,
    model: CurrentModel,
    store: CurrentStore,
    request: Request,
) -> Any:
    """Recommends the k best items of a domain for a history, or for a user."""
    model.recommender.catalog.domain_index(body.domain)  # refuses an unknown domain before it is queued
    policy = choose_policy(model.policies, body.policy)
    own_rules = make_rules(**{name: getattr(body, name) for name in Rules._fields})
    rules = policy.rules.merged_with(own_rules)
    body = await with_history(body, model, store)
    body = body.model_copy(update={"exclude": [*body.exclude, *policy.exclude]})
    exclude_seen = policy.exclude_seen if body.exclude_seen is None else body.exclude_seen
    k = None if rules == NO_RULES else body.k
    key = BatchKey(name, model, body.domain, exclude_seen, body.include_shares, body.time, rules, k)
    return await request.app.state.batcher.submit(key, body)


@router.post("/explain", response_model=schemas.ExplainResponse)
async def explain(
    body: schemas.ExplainRequest,
    name: ModelName,
    model: CurrentModel,
    store: CurrentStore,
    request: Request,
) -> Any:
    """Explains the score of an item for a history, or for a user."""
    item_index(model, body.item)
    key = BatchKey(name, model, time=body.time)
    return await request.app.state.batcher.submit(key, await with_history(body, model, store))


@router.post("/events")
async def post_events(
    body: schemas.EventsRequest, model: CurrentModel, store: CurrentStore
) -> schemas.EventsResponse:
    """Stores items that a user chose: later requests with this `user_id` have them in the history."""
    seconds = int(time.time()) if body.time is None else body.time
    await store.append(body.user_id, [Event(item_id, seconds) for item_id in body.items])
    _, unknown_ids = model.recommender.catalog.indices(dict.fromkeys(body.items))
    num_events = len(await newer_ids(store, model, body.user_id))
    return schemas.EventsResponse(num_events=num_events, unknown_ids=list(unknown_ids))


@router.get("/items")
def search_items(  # not async: a misspelled word takes a while in a large catalog
    model: CurrentModel, query: Text = "", domain: Text | None = None, limit: Limit = 24, offset: Offset = 0
) -> schemas.ItemPage:
    """Lists items whose titles and ids match all words of the query, the most popular first.

    A word matches words that begin with it or have its English stem; if there is none, similar spellings.
    """
    matches, catalog = model.search.search(query, domain), model.recommender.catalog
    page = [catalog.item(item) for item in matches[offset : offset + limit].tolist()]
    return schemas.ItemPage(items=[schemas.ItemResponse.from_item(item) for item in page], total=len(matches))


@router.post("/items")
async def get_items(body: schemas.ItemsRequest, model: CurrentModel) -> schemas.ItemList:
    """Return the items of some ids."""
    catalog = model.recommender.catalog
    indices, unknown_ids = catalog.indices(dict.fromkeys(body.ids))
    items = [schemas.ItemResponse.from_item(catalog.item(index)) for index in indices.tolist()]
    return schemas.ItemList(items=items, unknown_ids=list(unknown_ids))


@router.get("/items/{item_id:path}")
async def get_item(item_id: str, model: CurrentModel) -> schemas.ItemResponse:
    """Return an item."""
    return schemas.ItemResponse.from_item(model.recommender.catalog.item(item_index(model, item_id)))


@router.get("/similar-items/{item_id:path}")
def similar_items(  # not async: runs in a thread, beside the recommendations
    item_id: str, model: CurrentModel, k: Limit = 10, domain: Text | None = None, by: Text = "all"
) -> schemas.SimilarItemsResponse:
    """Return the items that are most similar to an item, by the cosines of their vectors."""
    catalog = model.recommender.catalog
    item = catalog.item(item_index(model, item_id))
    (similar,) = model.recommender.similar_items([item_id], k, domain=domain, by=by)
    return schemas.SimilarItemsResponse(
        item=schemas.ItemResponse.from_item(item),
        items=[
            schemas.SimilarItemResponse.from_item(one.item, similarity=one.score) for one in similar.items
        ],
    )


@router.get(
    "/pictures/{item_id:path}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}}
)
async def get_picture(request: Request, item_id: str, model: CurrentModel, side: Side = 160) -> Response:
    """Return the picture of an item as a JPEG."""
    if side not in (160, 320):
        raise HafvtError(f"side is {side}: give 160 or 320")
    jpeg = await model.pictures.get(item_index(model, item_id), side)
    if not jpeg:
        raise HTTPException(404, "this item has no picture")
    etag = f'"{hashlib.sha256(jpeg).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": f"private, max-age={PICTURE_MAX_AGE_S}"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(jpeg, media_type="image/jpeg", headers=headers)


@router.get("/users")
async def list_users(
    model: CurrentModel, query: Text = "", limit: Limit = 20, offset: Offset = 0
) -> schemas.UserPage:
    """Lists the dataset's users whose ids contain the query, with the last items of their histories.

    There are none without the dataset.
    """
    if model.users is None:
        return schemas.UserPage(users=[], total=0)
    matches = model.users.search(query)
    page = matches[offset : offset + limit].tolist()
    users = [user_response(model, user, MAX_LISTED_HISTORY) for user in page]
    return schemas.UserPage(users=users, total=len(matches))


@router.get("/users/{user_id:path}")
async def get_user(user_id: str, model: CurrentModel, store: CurrentStore) -> schemas.UserResponse:
    """Return the history of a user: the last items of the dataset, then those of posted events."""
    user, catalog = user_index(model, user_id), model.recommender.catalog
    indices, _ = catalog.indices(await newer_ids(store, model, user_id))
    posted = [schemas.ItemResponse.from_item(catalog.item(index)) for index in indices.tolist()]
    if model.users is None or user is None:
        if not posted:
            raise HTTPException(404, "no such user: /users lists all users")
        return schemas.UserResponse(user_id=user_id, history=posted)
    response = user_response(model, user, MAX_USER_HISTORY)
    response.history += posted
    response.targets = [
        schemas.TargetResponse(
            item=schemas.ItemResponse.from_item(target.item), num_before=target.num_before, time=target.time
        )
        for target in model.users.targets(user, MAX_USER_HISTORY)
    ]
    return response


def user_response(model: LoadedModel, user: int, limit: int) -> schemas.UserResponse:
    """Return a user with the last items of the history, at most `limit`."""
    assert model.users is not None
    history = [schemas.ItemResponse.from_item(item) for item in model.users.last_items(user, limit)]
    return schemas.UserResponse(user_id=model.users.user_ids[user], history=history)
