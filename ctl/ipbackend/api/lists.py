"""Lists of resources: filters, pages, and how the OpenAPI document tells both. It knows no resource."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, Field
from starlette.datastructures import QueryParams

from ipbackend.api.base import Answer, Ref
from ipbackend.errors import ConfigurationError, suggestion

LIMIT_MAX = 2000  # of a page, and its default
_PAGING = ("limit", "marker", "page_reverse")
Row = TypeVar("Row", bound=Ref)


class PageInfo(BaseModel):
    """Where the page stands; a marker is there only where another page is."""

    current_count: int
    previous_marker: str | None = Field(default=None, exclude_if=lambda value: value is None)
    next_marker: str | None = Field(default=None, exclude_if=lambda value: value is None)


class Listing(Answer):
    """The envelope of a list."""

    page_info: PageInfo


class Rows:
    """How the resources of one kind are listed: by their fields, and `also` by what they are told of elsewhere."""

    def __init__(self, kind: type[Ref], *also: str) -> None:
        self._fields = (*kind.model_fields, *also)

    @property
    def openapi(self) -> dict[str, Any]:
        """The query's parameters, for an operation's `openapi_extra`."""
        text = {"type": "array", "items": {"type": "string"}}
        schemas: dict[str, Any] = {
            "limit": {"type": "integer", "minimum": 0, "maximum": LIMIT_MAX, "default": LIMIT_MAX},
            "marker": {"type": "string"},
            "page_reverse": {"type": "boolean", "default": False},
            **dict.fromkeys(self._fields, text),
        }
        return {
            "parameters": [
                {"name": name, "in": "query", "required": False, "schema": schema} for name, schema in schemas.items()
            ]
        }

    def page(
        self, request: Request, rows: Iterable[Row], also: Mapping[str, Mapping[str, Sequence[str]]] | None = None
    ) -> tuple[list[Row], PageInfo]:
        """The rows that the query's filters let through, a page of them: `limit` rows after `marker`, or before it.

        `also` has the values of the filters that are no fields, by filter and the row's id. Values of one filter
        are alternatives; of a list, one that matches is enough. ConfigurationError: a page or filter that cannot be.
        """
        query, found = request.query_params, list(rows)
        for name in dict.fromkeys(key for key in query if key not in _PAGING):
            if name not in self._fields:
                raise ConfigurationError(f"{name}: not a field to filter by ({suggestion(name, self._fields)})")
            values, beside = set(query.getlist(name)), (also or {}).get(name)
            found = [row for row in found if values & _texts(getattr(row, name) if beside is None else beside[row.id])]
        found, limit, reverse = _after(found, query)
        more, page = len(found) > limit, found[:limit]
        if reverse:
            page.reverse()
        info = PageInfo(current_count=len(page))
        if page:
            info.previous_marker = page[0].id
            if "marker" in query if reverse else more:
                info.next_marker = page[-1].id
        return page, info


def _after(rows: list[Row], query: QueryParams) -> tuple[list[Row], int, bool]:
    """What follows the marker in the direction asked for, how much of it is wanted, and whether that is backwards."""
    text, marker, reverse = query.get("limit", str(LIMIT_MAX)), query.get("marker"), query.get("page_reverse", "false")
    if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) <= LIMIT_MAX):
        raise ConfigurationError(f"limit: {text!r} cannot be used (write 0 to {LIMIT_MAX})")
    if reverse not in ("true", "false"):
        raise ConfigurationError(f"page_reverse: {reverse!r} cannot be used (write true or false)")
    if reverse == "true":
        rows.reverse()
    if marker is not None:
        places = [place for place, row in enumerate(rows) if row.id == marker]
        if not places:
            raise ConfigurationError(f"marker: there is no {marker!r} (take the id of the last one of the page before)")
        rows = rows[places[0] + 1 :]
    return rows, int(text), reverse == "true"


def _texts(value: Any) -> set[str]:
    """How a query may write a value: nothing at all is written as nothing."""
    if isinstance(value, list | tuple):
        return {text for one in value for text in _texts(one)}
    if value is None:
        return {""}
    if isinstance(value, BaseModel):
        return _texts(list(value.model_dump().values()))
    return {str(value).lower() if isinstance(value, bool) else str(value)}
