"""What all families of the API share: bodies, answers, who serves and who asks. It knows no resource."""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any, ClassVar, TypedDict

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ipbackend.api.service import Service
from ipbackend.rules import Checked, Range, metadata

ELB = "/v3/{project_id}/elb"
OURS = "/v3/{project_id}/ipbackend"


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


def _true_or_false(value: Any) -> Any:
    if value not in ("true", "false", True, False):
        raise ValueError("must be true or false")
    return value


Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True, max_length=255)]
Address = Annotated[IPv4Address, BeforeValidator(_text)]
Cidr = Annotated[IPv4Network, BeforeValidator(_text)]
QueryFlag = Annotated[bool, BeforeValidator(_true_or_false)]
AnyOf = Annotated[list[str], Query(default_factory=list, max_length=2000)]  # alternatives; none is no filter
Id = Annotated[str, Path(max_length=255)]


def number(kind: type[Checked], name: str) -> Any:
    """A whole number, in the document with the range that the model's field has; the model is who checks it."""
    (limits,) = (mark for mark in metadata(kind.hints[name]) if isinstance(mark, Range))
    return Field(strict=True, json_schema_extra={"minimum": limits.low, "maximum": limits.high})


class Body(BaseModel):
    """What a client sends of a resource. `NAMES` are the fields that the model calls by another name."""

    model_config = ConfigDict(extra="forbid")
    NAMES: ClassVar[Mapping[str, str]] = {}
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset()  # taken since clients send them; there is nothing to set

    def fields_given(self) -> dict[str, Any]:
        """What was sent, under the model's names; lists as tuples."""
        given = {name: getattr(self, name) for name in self.model_fields_set - self.WITHOUT_EFFECT}
        return {
            self.NAMES.get(name, name): tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
        }


def _nothing_by_default(schema: dict[str, Any]) -> None:
    for field in schema["properties"].values():
        field.pop("default", None)


class Changes(Body):
    """What a client sends to change a resource: what is not sent stays, so the defaults here mean nothing."""

    model_config = ConfigDict(json_schema_extra=_nothing_by_default)


class Shown(BaseModel):
    """What is told of a resource; all of it, always."""


class Ref(Shown):
    """A resource that is told elsewhere."""

    id: str


class Stamped(Ref):
    """A resource with its times, in UTC: `2026-11-25T13:00:00Z`."""

    created_at: str
    updated_at: str


class Times(TypedDict):
    """Of a resource."""

    created_at: str
    updated_at: str


class Answer(BaseModel):
    """The envelope of every answer that has a body."""

    request_id: str


class Refusal(Answer):
    """Why a request was refused: for programs, for people, and each problem by itself."""

    error_code: str
    error_msg: str
    problems: list[str]


def refs(numbers: Any) -> list[Ref]:
    """As they are told in another resource."""
    return [Ref(id=number) for number in numbers]


def service_of(request: Request) -> Service:
    """Who serves."""
    service: Service = request.app.state.service
    return service


def author_of(request: Request) -> str:
    """Who asks: the user at the other end of the Unix socket."""
    return request.client.host if request.client else "unknown"


def request_id(request: Request) -> str:
    """What this request is called in its answer and in the log."""
    number: str = request.state.request_id
    return number


Serving = Annotated[Service, Depends(service_of)]
Author = Annotated[str, Depends(author_of)]
RequestId = Annotated[str, Depends(request_id)]


def router(prefix: str, family: str) -> APIRouter:
    """For the operations of one family."""
    return APIRouter(prefix=prefix, tags=[family])


def stamps(service: Service, number: str) -> Times:
    """When a resource was made and last changed."""
    stamp = service.stamps[number]
    return {"created_at": stamp.created_at, "updated_at": stamp.updated_at}
