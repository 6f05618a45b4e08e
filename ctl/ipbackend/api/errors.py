"""How refusals look to programs: a status, the published error code and text, and what the refusal says itself."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from ipbackend.api.base import Refusal, request_id
from ipbackend.errors import (
    ConfigurationError,
    DatapathError,
    IpbackendError,
    Kind,
    NetworkError,
    NotRunningError,
    Problem,
)

log = logging.getLogger(__name__)

# Kind → status, code, and the published text; `{}` is where it is wrong. Where none is, our own says as much.
CODES: dict[Kind, tuple[int, str, str]] = {
    Kind.INVALID: (400, "ELB.8902", "Invalid input for '{}'."),
    Kind.MISSING: (404, "ELB.8904", ""),
    Kind.TAKEN: (409, "ELB.8907", "Data conflict."),
    Kind.IN_USE: (409, "ELB.8907", "Data conflict."),
    Kind.PROTECTED: (409, "ELB.8907", "Data conflict."),
    Kind.QUOTA: (409, "ELB.8905", "Quota exceeded for resources: {}."),
    Kind.IP_TARGET_OFF: (
        400,
        "ELB.8939",
        "The load balancer's ip_target_enable must be true when adding IP members.",
    ),
    Kind.ADDRESSES: (
        400,
        "ELB.8934",
        "The number of available IP addresses in the subnet on the downstream plane is insufficient.",
    ),
}
SHOWN = 100  # problems of a body's shape that are told one by one
FAILED = (500, "ELB.8906", "Internal server error.")
_OF_STATUS = {401: "ELB.1103", 404: "ELB.8904"}
_OF_BODIES = {  # what the validator says, as we would say it
    "extra_forbidden": "there is no such field here (leave it out)",
    "missing": "is missing (it must be there)",
    "json_invalid": "it is no JSON (see RFC 8259)",
    "none_required": "only null can be kept: this gateway does not do it (leave it out)",
}

# How the OpenAPI document tells all this, for every operation.
RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "Something in the request is wrong"},
    404: {"model": Refusal, "description": "There is no such thing"},
    409: {"model": Refusal, "description": "It is taken, in use, protected, or there are too many"},
    "default": {"model": Refusal, "description": "It could not be done"},
}


def register(app: FastAPI) -> None:
    """Have the application answer so."""
    app.add_exception_handler(IpbackendError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_such_operation)
    app.add_exception_handler(Exception, _bug)


def _answered(
    request: Request, status: int, code: str, message: str, *problems: str, headers: Any = None
) -> JSONResponse:
    """As published."""
    text = "\n".join(filter(None, [message, *problems]))
    refusal = Refusal(error_code=code, error_msg=text, request_id=request_id(request), problems=list(problems))
    return JSONResponse(refusal.model_dump(), status, headers)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ConfigurationError) and error.problems:
        return _wrong(request, *error.problems)
    if isinstance(error, NetworkError | DatapathError):  # the kernel, or what somebody else put into it
        return _wrong(request, Problem(str(error), Kind.IN_USE))
    if isinstance(error, NotRunningError):
        return _wrong(request, Problem(str(error), Kind.MISSING))
    log.error("request %s: %s", request_id(request), error)
    status, code, _ = FAILED
    return _answered(request, status, code, "", str(error))


def _wrong(request: Request, *problems: str) -> JSONResponse:
    first = problems[0]
    status, code, published = CODES[first.kind if isinstance(first, Problem) else Kind.INVALID]
    return _answered(request, status, code, published.format(first.partition(": ")[0]), *problems)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """For each field what is wrong with it."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    problems = {
        "body" if one["type"] == "json_invalid" else ".".join(map(str, one["loc"][1:])) or "body": _OF_BODIES.get(
            one["type"], one["msg"]
        )
        for one in found[:SHOWN]
    }
    if len(found) > SHOWN:
        problems["body"] = f"{len(found) - SHOWN} more are wrong (these first)"
    status, code, published = CODES[Kind.INVALID]
    message = published.format(", ".join(problems))
    return _answered(request, status, code, message, *(f"{where}: {what}" for where, what in problems.items()))


async def _no_such_operation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code, headers = _OF_STATUS.get(error.status_code, "ELB.8902"), error.headers
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # routes are one a method, and each knows but its own
        headers = {"Allow": ", ".join(sorted(_methods(request)))}
    return _answered(request, error.status_code, code, "", str(error.detail), headers=headers)


def _methods(request: Request) -> set[str]:
    """What a path can be asked by (RFC 9110, 10.2.1)."""
    operations: list[Route] = request.app.state.operations
    matching = [route for route in operations if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in matching if route.path == matching[0].path for method in route.methods or ()}


async def _bug(request: Request, error: Exception) -> JSONResponse:
    """Its traceback is logged by the server."""
    return _answered(request, *FAILED)
