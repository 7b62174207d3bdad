"""Schemas of applications: pydantic classes, parameters of MCP tools, OpenAPI's objects."""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import (
    AnyUrl,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    NegativeInt,
    PositiveFloat,
    RootModel,
    SecretBytes,
    SecretStr,
    StringConstraints,
    conlist,
)

T = TypeVar("T")


class Fruit(enum.StrEnum):
    PEAR = "pear"
    BANANA = "banana"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: int


class User(BaseModel):
    id: int
    name: str = "John Doe"
    signup: dt.datetime | None = None
    friends: list[int] = []


class Cooking(BaseModel):
    fruit: Fruit
    level: Level = Level.LOW


class Pet(BaseModel):
    kind: Literal["cat", "dog"]
    names: set[str]


class Cat(BaseModel):
    pet_type: Literal["cat"]
    color: Literal["black", "white"]


class Dog(BaseModel):
    pet_type: Literal["dog"]
    breed: str = Field(max_length=20)


class Owner(BaseModel):
    pet: Cat | Dog = Field(discriminator="pet_type")


class Node(BaseModel):
    value: int = Field(ge=0, le=9)
    children: list[Node] = Field(default=[], max_length=1)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    count: Annotated[int, Field(strict=True, gt=0, lt=100)]


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")
    title: str = Field(max_length=30)


class Times(BaseModel):
    day: dt.date
    at: dt.time
    lasts: dt.timedelta


class Secrets(BaseModel):
    password: SecretStr
    key: SecretBytes


class Files(BaseModel):
    path: Path
    size: ByteSize
    data: bytes


class Network(BaseModel):
    v4: ipaddress.IPv4Address
    url: AnyUrl


class Numbers(BaseModel):
    ratio: float
    price: Decimal = Field(max_digits=5, decimal_places=2)
    negative: NegativeInt
    positive: PositiveFloat
    even: int = Field(multiple_of=2, ge=0, le=10)


class Identified(BaseModel):
    id: uuid.UUID
    email: Annotated[str, Field(json_schema_extra={"format": "email"})] | None = None


class Words(BaseModel):
    code: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}\d{3}$")]
    short: Annotated[str, StringConstraints(min_length=2, max_length=8)]


class Lists(BaseModel):
    pair: tuple[int, str]
    three: conlist(int, min_length=3, max_length=3)  # type: ignore[valid-type]
    place: Point


class Maps(BaseModel):
    counts: dict[str, int]
    anything: Any = None


class Tags(RootModel[list[Fruit]]):
    pass


class Page(BaseModel, Generic[T]):
    items: list[T] = Field(max_length=2)
    more: bool


class Aliased(BaseModel):
    given: str = Field(alias="givenName", max_length=20)
    of_class: str = Field(alias="class", max_length=20)


CLASSES: list[type[BaseModel]] = [
    User, Cooking, Pet, Owner, Node, Strict, Loose, Times, Secrets, Files, Network, Numbers,
    Identified, Words, Lists, Maps, Tags, Page[User], Page[Fruit], Aliased,
]  # fmt: skip


def of(required: list[str] | None = None, /, **properties: Any) -> dict[str, Any]:
    """An object's schema, all of whose properties are required unless some are named."""
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names}


TEXT, INTEGER, NUMBER, TRUTH = (
    {"type": kind} for kind in ("string", "integer", "number", "boolean")
)
MCP: dict[str, dict[str, Any]] = {
    "read_file": of(["path"], path=TEXT, head={**INTEGER, "minimum": 1}, tail=INTEGER),
    "write_file": of(path=TEXT, content=TEXT),
    "edit_file": of(["path"], path=TEXT, dryRun={**TRUTH, "default": False},
                    edits={"type": "array", "items": of(oldText=TEXT, newText=TEXT)}),
    "list_directory": of(path={**TEXT, "minLength": 1}),
    "search_files": of(["path"], path=TEXT, excludePatterns={"type": "array", "items": TEXT}),
    "git_log": of(["repo_path"], repo_path=TEXT, max_count={**INTEGER, "default": 10}),
    "git_diff": of(repo_path=TEXT, target=TEXT, context_lines={**INTEGER, "minimum": 0}),
    "fetch": of(["url"], url={**TEXT, "format": "uri"}, raw=TRUTH,
                max_length={**INTEGER, "exclusiveMinimum": 0, "exclusiveMaximum": 1_000_000}),
    "get_current_time": of(timezone={**TEXT, "description": "IANA"}),
    "create_entities": of(entities={"type": "array", "items": of(
        name=TEXT, entityType=TEXT, observations={"type": "array", "items": TEXT})}),
    "sequential_thinking": of(thought=TEXT, nextThoughtNeeded=TRUTH, thoughtNumber=INTEGER),
    "create_issue": of(["title"], title=TEXT, labels={"type": "array", "uniqueItems": True,
                                                      "items": TEXT}, milestone=NUMBER),
    "query": of(sql=TEXT),
    "screenshot": of(["name"], name=TEXT, width=NUMBER, height=NUMBER, encoded=TRUTH),
    "zod": {**of(a=TEXT, b={"$ref": "#/properties/a"}), "additionalProperties": False,
            "$schema": "http://json-schema.org/draft-07/schema#"},
    "no_arguments": {"type": "object", "properties": {}},
    "either": of(target={"oneOf": [TEXT, {"type": "integer", "minimum": 0}]}),
    "nothing_else": {**of(a=INTEGER), "unevaluatedProperties": False},
    "one_of_two": {**of([], a=INTEGER, b=INTEGER), "anyOf": [{"required": ["a"]},
                                                             {"required": ["b"]}]},
    "tree": of(root={"$ref": "#/$defs/N"}) | {"$defs": {"N": of(
        ["v"], v={"enum": [1, 2]}, next={"$ref": "#/$defs/N"})}},
}  # fmt: skip
OPENAPI: dict[str, dict[str, Any]] = {
    "pet": of(["name"], id={**INTEGER, "format": "int64"}, name={**TEXT, "example": "doggie"},
              status={**TEXT, "enum": ["available", "pending", "sold"]}),
    "order": of(petId={**INTEGER, "format": "int64"}, quantity={**INTEGER, "format": "int32"},
                shipDate={**TEXT, "format": "date-time"}, complete=TRUTH),
    "address": of(street=TEXT, city=TEXT, zip={**TEXT, "pattern": r"^\d{5}(-\d{4})?$"}),
    "bank": of(iban={**TEXT, "minLength": 15, "maxLength": 34}, bic=TEXT),
    "password": of(password={**TEXT, "format": "password",
                             "pattern": r"^(?=.*\d)(?=.*[a-z]).{8,}$"}),
    "upload": of(file={**TEXT, "format": "binary"}, name=TEXT),
    "nullable": of(name={**TEXT, "nullable": True}, age={"type": ["integer", "null"]}),
    "polymorphic": {"oneOf": [of(kind={"const": "circle"}, radius=NUMBER),
                              of(kind={"const": "square"}, side=NUMBER)],
                    "discriminator": {"propertyName": "kind"}},
    "all_of": {"allOf": [of(id=INTEGER), of(name=TEXT)]},
    "map": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
    "patterns": {"type": "object", "patternProperties": {"^x-": TEXT}, "maxProperties": 2},
    "conditional": of(["country"], country={"enum": ["US", "CA"]}, zip=TEXT) | {
        "if": {"properties": {"country": {"const": "US"}}}, "then": {"required": ["zip"]}},
    "not_empty": of(value={"not": {"const": ""}}),
    "contains": of(roles={"type": "array", "items": {"enum": ["user", "admin"]}, "minItems": 1,
                          "maxItems": 2, "contains": {"const": "admin"}}),
    "dependent": of([], card=INTEGER, address=TEXT) | {"dependentRequired": {"card": ["address"]}},
    "definitions": of(a={"$ref": "#/definitions/A"}) | {"definitions": {"A": of(x=TRUTH)}},
    "tuple": of(pair={"type": "array", "prefixItems": [INTEGER, TEXT], "items": False,
                      "minItems": 2}),
    "step": of(value={**NUMBER, "multipleOf": 0.5, "minimum": 0, "maximum": 10}),
    "legacy": of(value={**NUMBER, "minimum": 0, "exclusiveMinimum": True}),
    "anything": {"type": "object"},
}  # fmt: skip
assert len(CLASSES) + len(MCP) + len(OPENAPI) == 60
