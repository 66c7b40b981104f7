"""What goes over the wire: requests, checked strictly, and answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

LONGEST_ID = 256  # characters
LONGEST_HISTORY = 10_000  # items of a request
MOST = 100  # items of an answer

Id = Annotated[str, StringConstraints(max_length=LONGEST_ID)]
Ids = Annotated[list[Id], Field(max_length=LONGEST_HISTORY)]


class Question(BaseModel):
    """A request's body: no unknown fields, nothing converted."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Recommend(Question):
    """What to recommend to whom."""

    history: Ids = Field(description="item ids, oldest first, from any domains; may be empty")
    domain: Id = Field(description="whose items are recommended")
    k: int = Field(10, ge=1, le=MOST, description="how many")
    exclude: Ids = Field([], description="ids never to recommend")
    seen: bool = Field(False, description="whether items of the history may be recommended again")
    shares: bool = Field(False, description="tell where each score comes from")


class Explain(Question):
    """Which item to explain for which history."""

    history: Ids = Field(description="item ids, oldest first")
    item: Id


class Item(BaseModel):
    """An item."""

    item_id: str
    title: str | None
    domain: str
    picture: str | None = Field(description="path of its picture on this server; takes ?side=160 or 320")
    train_count: int = Field(description="how often training met it")


class Scored(Item):
    """A recommended item."""

    score: float
    shares: dict[str, dict[str, float]] | None = Field(None, description="sequence -> modality -> share")


class Recommended(BaseModel):
    """An answer to `Recommend`."""

    items: list[Scored] = Field(description="best first")
    by: Literal["model", "popularity"] = Field(description="popularity where no item of the history is known")
    unknown: list[str] = Field(description="ids of the history that the catalog does not have")


class Share(BaseModel):
    """What a branch adds to a score; all of them sum to 1."""

    sequence: str
    modality: str
    share: float


class Attention(BaseModel):
    """What a branch attends to: a weight for each item of the history."""

    sequence: str
    modality: str
    weights: list[float]


class Explained(BaseModel):
    """An answer to `Explain`."""

    item: Item
    score: float
    rank: float
    history: list[Item] = Field(description="the known items that the model read, oldest first")
    shares: list[Share]
    attention: list[Attention]
    unknown: list[str]


class Items(BaseModel):
    """A page of items."""

    items: list[Item]
    total: int


class Person(BaseModel):
    """A person and the last items they met, oldest first."""

    user_id: str
    history: list[Item]


class People(BaseModel):
    """A page of people."""

    people: list[Person]
    total: int


class DomainSize(BaseModel):
    """A domain."""

    name: str
    items: int


class Model(BaseModel):
    """What is served."""

    name: str
    domains: list[DomainSize]
    sequences: list[str]
    modalities: list[str]
    max_length: int
    explains: bool
    people: bool


class Health(BaseModel):
    """The process lives."""

    status: Literal["ok"]


class Ready(BaseModel):
    """The model answers."""

    status: Literal["ready"]
    model: str
    domains: list[str]
    items: int
    loaded: str


class Error(BaseModel):
    """What is wrong and how to mend it."""

    error: str
