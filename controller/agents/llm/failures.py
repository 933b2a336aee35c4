"""What to do after a failed request to the API: retry it, ask no more for a while, or give it up. Pure."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from controller.core.untrusted import clean_line

#: An error inside a stream comes with HTTP status 200; its type tells the status it would have had.
_STATUS_OF = {
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_ADVICE = {
    401: "check the key in ANTHROPIC_API_KEY",
    402: "look at the billing of the account",
    403: "the key lacks the permission for this model; check claude.model and the account",
    404: "there is no such model or address; check claude.model and claude.base_url",
}
#: Retry after these, and after everything from 500 on.
_TRANSIENT = frozenset({408, 409, 425, 429})
#: The limit of the month is spent. The API then gives no retry-after; requests work again next month, UTC.
_MONTH_IS_SPENT = frozenset({"enforced_spend_limit_reached"})
_SPENT = frozenset({"contract_spend_limit_reached", "linked_organization_spend_limit_reached"})
#: These come as a plain 400; only the message distinguishes them from a malformed request.
_USAGE_LIMIT = re.compile(r"reached your specified (?:workspace )?API usage limits", re.IGNORECASE)
_REGAIN = re.compile(r"regain access on (\d{4}-\d{2}-\d{2}) at (\d{2}:\d{2}) UTC")
_BALANCE = re.compile(r"credit balance is too low", re.IGNORECASE)


@dataclass(frozen=True)
class Failure:
    """What is known about a request that failed."""

    status: int | None
    """HTTP status; None if the connection failed, timed out or broke."""
    message: str
    kind: str = ""
    """The type of the error, as the API names it."""
    code: str = ""
    """The stable code of the cause, if the API gave one."""
    retry_after: float | None = None
    """Seconds to wait, if the API said."""


@dataclass(frozen=True)
class Busy:
    """The same request may succeed later."""

    reason: str
    after: float | None


@dataclass(frozen=True)
class Away:
    """No request will succeed for so many seconds; None: until a person changes something."""

    reason: str
    seconds: float | None


@dataclass(frozen=True)
class Unusable:
    """This request will never succeed; another one may."""

    reason: str


def classify(failure: Failure, now: dt.datetime) -> Busy | Away | Unusable:
    """What to do next. `now` is UTC."""
    status = failure.status
    if status is None or status < 400:
        status = _STATUS_OF.get(failure.kind, failure.status)
    reason = _sentence(failure, status)
    if status is None:
        return Busy(reason, None)
    if status < 400:
        return Away(f"{reason.rstrip('.')}; check claude.base_url.", None)
    if failure.code in _MONTH_IS_SPENT:
        return Away(reason, failure.retry_after or _until_next_month(now))
    if failure.code in _SPENT or _BALANCE.search(failure.message):
        return Away(reason, failure.retry_after)
    if _USAGE_LIMIT.search(failure.message):
        return Away(reason, failure.retry_after or _until_regained(failure.message, now))
    if status in _ADVICE:
        return Away(f"{reason.rstrip('.')}; {_ADVICE[status]}.", None)
    if status in _TRANSIENT or status >= 500:
        return Busy(reason, failure.retry_after)
    return Unusable(reason)


def retry_after(headers: Mapping[str, str], now: dt.datetime) -> float | None:
    """Seconds to wait according to the headers of a reply; None if they do not say or make no sense."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=dt.UTC)
    return max(0.0, (date - now).total_seconds())


def _sentence(failure: Failure, status: int | None) -> str:
    said = clean_line(failure.message, 300)
    if status is None:
        return f"The API cannot be reached: {said}"
    kind = f" {clean_line(failure.kind, 40)}" if failure.kind else ""
    return f"The API answered {status}{kind}: {said}"


def _until_next_month(now: dt.datetime) -> float:
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + dt.timedelta(days=32)).replace(day=1)
    return (following - now).total_seconds()


def _until_regained(message: str, now: dt.datetime) -> float | None:
    found = _REGAIN.search(message)
    if found is None:
        return None
    try:
        until = dt.datetime.fromisoformat(f"{found[1]}T{found[2]}:00+00:00")
    except ValueError:
        return None
    return max(0.0, (until - now).total_seconds())
