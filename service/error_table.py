"""The one table that says what answer a domain error becomes.

Packages state `(status, code)` of their own errors in an `ERROR_TABLE`; here they meet
HTTP. Nothing below the edge imports this module.
"""

from __future__ import annotations

from typing import Any

from service.errors import ServiceError
from service.jobs.errors import ERROR_TABLE as JOB_ERRORS
from service.ledger.errors import ERROR_TABLE as LEDGER_ERRORS
from service.ledger.errors import BudgetExceeded
from service.sealing.errors import ERROR_TABLE as SEAL_ERRORS

DOMAIN_ERRORS: dict[type[Exception], tuple[int, str]] = {
    **JOB_ERRORS,
    **LEDGER_ERRORS,
    **SEAL_ERRORS,
}


def as_service_error(error: Exception) -> ServiceError | None:
    """The answer to a domain error; None when the table does not know its kind.

    Domain texts name settings, ids and amounts only, hence travel to the caller. A domain
    error may carry `param` (or `field`) and `extra`.
    """
    if isinstance(error, ServiceError):
        return error
    for kind in type(error).__mro__:
        if kind in DOMAIN_ERRORS:
            status, code = DOMAIN_ERRORS[kind]
            return ServiceError(
                status, code, str(error), param=_param(error), extra=_extra(error, code)
            )
    return None


def _param(error: Exception) -> str | None:
    named = getattr(error, "param", None) or getattr(error, "field", None)
    return named if isinstance(named, str) else None


def _extra(error: Exception, code: str) -> dict[str, Any]:
    extra: dict[str, Any] = dict(getattr(error, "extra", None) or {})
    if isinstance(error, BudgetExceeded):
        extra["balance"] = {
            "population": error.population_id,
            "block": error.block,
            "needed_pico": str(error.requested_pico),
            "available_pico": str(error.available_pico),
        }
        if error.receipts:
            extra["receipts"] = list(error.receipts)
    param = _param(error)
    if code in {"field_invalid", "plan_infeasible"} and param is not None:
        pointer = "/" + param.replace(".", "/")
        extra.setdefault("errors", [{"pointer": pointer, "code": code, "message": str(error)}])
    return extra
