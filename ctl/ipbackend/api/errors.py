"""How refusals look to programs: a status, the published error code, and what the refusal says itself."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ipbackend.api.base import request_id
from ipbackend.errors import ConfigurationError, DatapathError, IpbackendError, Kind, NetworkError

log = logging.getLogger(__name__)

CODES: dict[Kind, tuple[int, str]] = {
    Kind.INVALID: (400, "ELB.8902"),
    Kind.MISSING: (404, "ELB.8904"),
    Kind.TAKEN: (409, "ELB.8907"),
    Kind.IN_USE: (409, "ELB.8907"),
    Kind.PROTECTED: (409, "ELB.8907"),
    Kind.QUOTA: (409, "ELB.8905"),
    Kind.IP_TARGET_OFF: (400, "ELB.8939"),
    Kind.UNSUPPORTED: (403, "ELB.8962"),
}
KERNEL = (409, "ELB.8907")  # the kernel, or what somebody else put into it, stands in the way
FAILED = (500, "ELB.8906")
_OF_STATUS = {401: "ELB.1103", 404: "ELB.8904"}


def register(app: FastAPI) -> None:
    """Have the application answer so."""
    app.add_exception_handler(IpbackendError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_such_operation)
    app.add_exception_handler(Exception, _bug)


def body(request: Request, code: str, message: str) -> dict[str, Any]:
    """As published."""
    return {"error_code": code, "error_msg": message, "request_id": request_id(request)}


async def _refused(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ConfigurationError):
        status, code = CODES[error.kind]
    else:
        status, code = KERNEL if isinstance(error, NetworkError | DatapathError) else FAILED
    if status == FAILED[0]:
        log.error("request %s: %s", request_id(request), error)
    return JSONResponse(body(request, code, str(error)), status)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """The published text, and for each field what is wrong with it."""
    assert isinstance(error, RequestValidationError)
    problems = [(".".join(str(part) for part in one["loc"][1:]) or "body", one["msg"]) for one in error.errors()]
    names = ", ".join(dict.fromkeys(name for name, _ in problems))
    details = "; ".join(f"{name}: {what}" for name, what in problems)
    status, code = CODES[Kind.INVALID]
    return JSONResponse(body(request, code, f"Invalid input for '{names}'. {details}"), status)


async def _no_such_operation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _OF_STATUS.get(error.status_code, "ELB.8902")
    return JSONResponse(body(request, code, str(error.detail)), error.status_code, error.headers)


async def _bug(request: Request, error: Exception) -> JSONResponse:
    """Its traceback is logged by the server."""
    return JSONResponse(body(request, FAILED[1], "Internal server error."), FAILED[0])
