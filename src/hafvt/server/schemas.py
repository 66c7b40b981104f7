"""The JSON of requests and answers: one pydantic model each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from hafvt.data.ids import id_text
from hafvt.data.times import UNIX_SECONDS, parse_request_time
from hafvt.errors import HafvtError
from hafvt.inference.catalog import Item
from hafvt.inference.recommendations import Explanation

MAX_ID_LENGTH = 256  # characters
MAX_HISTORY_LENGTH = 10_000  # items of a request
MAX_POSTED_EVENTS = 1000  # of one request
MAX_ITEMS = 100  # items of an answer
MAX_CONDITION_LENGTH = 2000  # characters
MAX_CAPPED_COLUMNS = 20
VERSION = "of the model; another one answers once a newer model is loaded"


def id_from_json(value: object) -> str:
    """Return an id in JSON as text, or raise ValueError if it is none."""
    try:
        return id_text(value)
    except HafvtError as error:
        raise ValueError(str(error)) from None


def time_from_json(value: Any) -> int | None:
    """Return the time of a request in JSON as seconds since 1970, or raise ValueError if it is none."""
    try:
        return parse_request_time(value)
    except HafvtError as error:
        raise ValueError(str(error)) from None


ERROR_TEXTS = {
    "missing": "is missing: give it",
    "extra_forbidden": "is no field of this request: leave it out",
    "bool_type": "is neither true nor false: give one of these",
    "dict_type": "is no object: send one in JSON",
    "model_attributes_type": "is no object: send one in JSON",
    "int_type": "is no whole number: give one",
    "int_parsing": "is no whole number: give one",
    "list_type": "is no list: give one",
    "too_short": "is too short: give a length of at least {min_length}",
    "greater_than_equal": "is too small: give at least {ge}",
    "less_than_equal": "is too large: give at most {le}",
    "too_long": "is too long: give a length of at most {max_length}",
    "string_too_long": "is too long: give at most {max_length} characters",
    "value_error": "is wrong: {error}",
    "json_invalid": "is not JSON ({error}): correct it",
}
"""By pydantic's type of an error: what is wrong with a field, and the remedy."""


def explain_error(error: Mapping[str, Any]) -> str:
    """Return one line for an error that pydantic found in a request: field, what is wrong, remedy."""
    source, *fields = error["loc"]
    name = ".".join(map(str, fields)) if fields and error["type"] != "json_invalid" else f"the {source}"
    text = ERROR_TEXTS[error["type"]].format_map(error.get("ctx", {})) if error["type"] in ERROR_TEXTS else ""
    return f"{name[:100]} {(text or error['msg'])[:200]}"


TEXT_SCHEMA = {"type": "string", "maxLength": MAX_ID_LENGTH, "pattern": r"\S"}
Id = Annotated[
    str,
    BeforeValidator(id_from_json),
    StringConstraints(max_length=MAX_ID_LENGTH),
    WithJsonSchema({"anyOf": [TEXT_SCHEMA, {"type": "integer"}]}),
]
TIME_SCHEMAS: list[JsonValue] = [
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "integer", "minimum": UNIX_SECONDS[0], "maximum": UNIX_SECONDS[1]},
    {"type": "null"},
]
Time = Annotated[
    int | None,
    BeforeValidator(time_from_json),
    Field(
        description="when the items are shown: a date, a date with a time (in UTC if it names no zone), or "
        "seconds since 1970; default: now. For models that know the date"
    ),
    WithJsonSchema({"anyOf": TIME_SCHEMAS}),
]
PastTime = Annotated[
    int | None,
    BeforeValidator(time_from_json),
    Field(description="when the items were chosen, in the form of `time` of `/recommend`; default: now"),
    WithJsonSchema({"anyOf": TIME_SCHEMAS}),
]
Ids = Annotated[list[Id], Field(max_length=MAX_HISTORY_LENGTH)]
UnknownIds = Annotated[list[str], Field(description="ids of the history that the catalog does not have")]
Shares = Annotated[
    dict[str, dict[str, float]], Field(description="sequence -> modality -> share of the score")
]
Attention = Annotated[
    dict[str, dict[str, list[float]]], Field(description="sequence -> modality -> weights of `history`")
]


Weight = Annotated[float, Field(ge=0, le=1)]


class StrictRequest(BaseModel):
    """The body of a request: unknown fields and values of another type are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


class UserRequest(StrictRequest):
    """A request for a history, or for a user in its place."""

    history: Ids = Field([], description="item ids, oldest first, from any domains; may be empty")
    user_id: Id | None = Field(
        None,
        description="in place of `history`, a user: the interactions of the dataset, then posted events",
    )

    @model_validator(mode="after")
    def _require_one_source(self) -> Self:
        """Refuse a request with both a history and a user, or with neither."""
        has_history, has_user = "history" in self.model_fields_set, self.user_id is not None
        if has_history == has_user:
            problem = "it has both history and user_id" if has_user else "history and user_id are missing"
            raise ValueError(f"{problem}: give one of them")
        return self


class RecommendRequest(UserRequest):
    """The body of `POST /recommend`."""

    domain: Id = Field(description="the domain whose items are recommended")
    k: int = Field(10, ge=1, le=MAX_ITEMS, description="the number of items to recommend")
    exclude: Ids = Field([], description="ids of items never to recommend")
    exclude_seen: bool | None = Field(
        None, description="whether items of the history are left out; by default, as in the evaluation"
    )
    include_shares: bool = Field(False, description="whether each item has its `shares`; slower")
    rank_of: Id | None = Field(None, description="id of an item whose `rank` the answer gives")
    time: Time = None
    policy: str | None = Field(
        None, max_length=MAX_ID_LENGTH, description="name of a policy of the server, whose rules hold, too"
    )
    where: str | None = Field(
        None,
        max_length=MAX_CONDITION_LENGTH,
        description="condition in SQL over columns of the items table that recommended items meet, such as "
        "price < 20",
    )
    allow: Ids | None = Field(None, description="ids of the only items to recommend")
    max_per: dict[str, int] = Field(
        {},
        max_length=MAX_CAPPED_COLUMNS,
        description="by column of the items table, the largest number of items with equal values",
    )
    pin: dict[str, Id] = Field(
        {},
        max_length=MAX_ITEMS,
        description="by place, 1 for the first, ids of items that are recommended there",
    )
    diversity: Weight = Field(
        0, description="weight of choosing items that differ in picture and title from those above"
    )
    calibrate: dict[str, Weight] = Field(
        {},
        max_length=MAX_CAPPED_COLUMNS,
        description="by column of the items table, the weight of lists with the shares of values that the "
        "history has",
    )


class ExplainRequest(UserRequest):
    """The body of `POST /explain`."""

    item: Id = Field(description="id of the item to explain")
    time: Time = None


class EventsRequest(StrictRequest):
    """The body of `POST /events`."""

    user_id: Id = Field(description="the user, who may be new")
    items: Annotated[list[Id], Field(min_length=1, max_length=MAX_POSTED_EVENTS)] = Field(
        description="ids of the items that the user chose, oldest first"
    )
    time: PastTime = None


class EventsResponse(BaseModel):
    """The answer to `POST /events`."""

    num_events: int = Field(description="number of stored events of the user that the dataset does not have")
    unknown_ids: list[str] = Field(
        description="ids that the catalog does not have, which are stored for a later model"
    )


class ItemsRequest(StrictRequest):
    """The body of `POST /items`."""

    ids: Ids = Field(description="item ids")


class ItemResponse(BaseModel):
    """An item of the catalog."""

    item_id: str
    title: str | None
    domain: str
    picture: str | None = Field(description="path of its picture on this server; takes ?side=160 or 320")
    train_count: int = Field(description="number of training interactions with the item; 0 for a cold item")
    attributes: dict[str, Any] = Field(
        description="values of the other columns of the items table, such as brand and price"
    )

    @classmethod
    def from_item(cls, item: Item, **fields: object) -> Self:
        """Return an item of the catalog, with the further fields of a subclass."""
        picture = f"/pictures/{quote(item.item_id, safe='')}" if item.image else None
        return cls.model_validate({**vars(item), "picture": picture, **fields})


class ReasonResponse(BaseModel):
    """The item of the history that contributes most to a score."""

    item_id: str
    title: str | None
    share: float = Field(description="of the score: over all branches, share of the branch times attention")


class ScoredItemResponse(ItemResponse):
    """A recommended item."""

    score: float = Field(description="higher is better; comparable within one answer only")
    shares: Shares | None = Field(None, description="absent unless the request has `include_shares`")
    reason: ReasonResponse | None = Field(None, description="absent unless the request has `include_shares`")


class RecommendResponse(BaseModel):
    """The answer to `POST /recommend`."""

    items: list[ScoredItemResponse] = Field(description="best first")
    ranked_by: Literal["model", "popularity"] = Field(
        description="popularity if no item of the history is known"
    )
    rank: float | None = Field(
        None,
        description="of `rank_of` among the items that may be listed without rules, ties share a mean rank; "
        "absent without `rank_of`, null for an item that may not be listed",
    )
    model: str = Field(description="the name of the model that answers")
    version: str = Field(description=VERSION)
    unknown_ids: UnknownIds
    unknown_excluded_ids: list[str] = Field(description="ids of `exclude` that the catalog does not have")
    unknown_rule_ids: list[str] = Field(
        description="ids of `allow` and `pin` that the catalog does not have, those of the policy included"
    )


class ExplainResponse(BaseModel):
    """The answer to `POST /explain`."""

    item: ItemResponse
    score: float
    rank: float = Field(description="rank among all items of the domain; equal scores share their mean rank")
    history: list[ItemResponse] = Field(description="the items that the model reads, oldest first")
    shares: Shares
    attention: Attention
    model: str = Field(description="the name of the model that answers")
    version: str = Field(description=VERSION)
    unknown_ids: UnknownIds

    @classmethod
    def from_explanation(cls, explanation: Explanation, **fields: str) -> Self:
        """Return the answer that states an explanation; `fields` are those that name the model."""
        shares: dict[str, dict[str, float]] = {}
        attention: dict[str, dict[str, list[float]]] = {}
        for (sequence, modality), share in explanation.shares.items():
            shares.setdefault(sequence, {})[modality] = share
            weights = explanation.attention[sequence, modality]
            attention.setdefault(sequence, {})[modality] = list(weights)
        item, *history = map(ItemResponse.from_item, (explanation.item, *explanation.history))
        parts = {"item": item, "history": history, "shares": shares, "attention": attention, **fields}
        return cls.model_validate({**vars(explanation), **parts})


class ItemPage(BaseModel):
    """The answer to `GET /items`."""

    items: list[ItemResponse]
    total: int = Field(description="number of items that match, on all pages")


class ItemList(BaseModel):
    """The answer to `POST /items`."""

    items: list[ItemResponse] = Field(description="the items of the ids, each once")
    unknown_ids: list[str] = Field(description="ids that the catalog does not have")


class SimilarItemResponse(ItemResponse):
    """An item that is similar to another."""

    similarity: float = Field(description="mean cosine of the vectors, at most 1")


class SimilarItemsResponse(BaseModel):
    """The answer to `GET /similar-items/{item_id}`."""

    item: ItemResponse
    items: list[SimilarItemResponse] = Field(description="the most similar first")


class TargetResponse(BaseModel):
    """An item that a user chose and that the training did not see: recommend for the items before it."""

    item: ItemResponse
    num_before: int = Field(description="number of items of `history` before it")
    time: int | None = Field(description="`time` of the request that is to predict it; null without dates")


class UserResponse(BaseModel):
    """A user and the last items of their history, oldest first, with those of posted events."""

    user_id: str
    history: list[ItemResponse]
    targets: list[TargetResponse] = Field(
        default_factory=list, description="test targets; of `GET /users/{user_id}` alone"
    )


class UserPage(BaseModel):
    """The answer to `GET /users`."""

    users: list[UserResponse]
    total: int = Field(description="number of users, on all pages")


class DomainResponse(BaseModel):
    """A domain of the catalog."""

    name: str
    num_items: int


class ModelResponse(BaseModel):
    """The answer to `GET /model`."""

    name: str
    models: list[str] = Field(description="the served models; requests choose one by `?model=`")
    version: str = Field(description=VERSION)
    domains: list[DomainResponse]
    attributes: list[str] = Field(description="the other columns of the items table, such as brand and price")
    sequences: list[str] = Field(description="of the model's branches; empty if it cannot explain scores")
    modalities: list[str] = Field(description="of the model's branches; empty if it cannot explain scores")
    max_length: int = Field(description="the model reads this many items, the last ones of a history")
    can_explain: bool
    has_users: bool = Field(description="whether GET /users lists users")
    has_vectors: bool = Field(description="whether GET /similar-items compares items")
    policies: list[str] = Field(description="names of the policies")


class HealthResponse(BaseModel):
    """The answer to `GET /health`."""

    status: Literal["ok"] = "ok"


class ReadyResponse(BaseModel):
    """The answer to `GET /ready`."""

    status: Literal["ready"] = "ready"
    model: str
    domains: list[str]
    num_items: int
    loaded_at: str = Field(description="ISO 8601, UTC")


class ErrorResponse(BaseModel):
    """The answer to every request that fails."""

    error: str = Field(description="what is wrong and the remedy, in one line")
