"""What a failed request deserves, for messages as the API gives them and for ones that only look alike."""

from __future__ import annotations

import datetime as dt

import pytest

from controller.agents.llm.failures import Away, Busy, Failure, Unusable, classify, retry_after

NOW = dt.datetime(2026, 11, 21, 12, 0, tzinfo=dt.UTC)
HOUR, DAY = 3600.0, 86400.0


@pytest.mark.parametrize(
    ("failure", "after"),
    [
        (
            Failure(429, "This request would exceed your rate limit", "rate_limit_error", retry_after=17.0),
            17.0,
        ),
        (Failure(429, "Too fast", "rate_limit_error", "ramp_limit_exceeded", retry_after=30.0), 30.0),
        (Failure(429, "This request would exceed your rate limit", "rate_limit_error"), None),
        (Failure(529, "Overloaded", "overloaded_error"), None),
        (Failure(500, "Internal server error", "api_error"), None),
        (Failure(502, "<html><h1>Bad Gateway</h1>"), None),
        (Failure(503, "Service Unavailable", retry_after=5.0), 5.0),
        (Failure(504, "timed out", "timeout_error"), None),
        (Failure(408, "Request Timeout"), None),
        (Failure(None, "Connection error."), None),
        (Failure(None, "Overloaded", "overloaded_error"), None),  # as an event in a stream
    ],
)
def test_what_passes(failure: Failure, after: float | None) -> None:
    verdict = classify(failure, NOW)
    assert isinstance(verdict, Busy)
    assert verdict.after == after


@pytest.mark.parametrize(
    ("failure", "seconds", "words"),
    [
        (
            Failure(401, "invalid x-api-key", "authentication_error"),
            None,
            "check the key in ANTHROPIC_API_KEY",
        ),
        (Failure(402, "Your billing …", "billing_error"), None, "billing of the account"),
        (Failure(403, "Your API key does not have permission", "permission_error"), None, "permission"),
        (Failure(404, "model: claude-opus-99", "not_found_error"), None, "check claude.model"),
        (Failure(307, "Temporary Redirect"), None, "check claude.base_url"),
        (Failure(None, "revoked", "authentication_error"), None, "check the key"),  # in a stream
        (Failure(429, "…", "rate_limit_error", "enforced_spend_limit_reached"), 9.5 * DAY, "429"),
        (Failure(429, "…", "rate_limit_error", "enforced_spend_limit_reached", 60.0), 60.0, "429"),
        (Failure(429, "…", "rate_limit_error", "contract_spend_limit_reached"), None, "429"),
        (
            Failure(
                400,
                "You have reached your specified API usage limits. You will regain access on "
                "2026-12-01 at 00:00 UTC.",
                "invalid_request_error",
            ),
            9.5 * DAY,
            "usage limits",
        ),
        (
            Failure(
                400,
                "You have reached your specified workspace API usage limits. You will regain access on "
                "2026-11-21 at 18:00 UTC.",
                "invalid_request_error",
            ),
            6 * HOUR,
            "usage limits",
        ),
        (
            Failure(400, "You have reached your specified API usage limits.", "invalid_request_error"),
            None,
            "400",
        ),
        (
            Failure(
                400,
                "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to "
                "upgrade or purchase credits.",
                "invalid_request_error",
            ),
            None,
            "credit balance",
        ),
    ],
)
def test_what_keeps_everything_away(failure: Failure, seconds: float | None, words: str) -> None:
    verdict = classify(failure, NOW)
    assert isinstance(verdict, Away)
    assert verdict.seconds == seconds
    assert words in verdict.reason


@pytest.mark.parametrize(
    "failure",
    [
        Failure(400, "prompt is too long: 210000 tokens > 200000 maximum", "invalid_request_error"),
        Failure(400, "temperature: may not be set for this model", "invalid_request_error"),
        Failure(400, "tools.0.description: API usage limits of tools were reached", "invalid_request_error"),
        Failure(413, "Request exceeds the maximum size", "request_too_large"),
        Failure(422, "unprocessable"),
        Failure(None, "too large", "request_too_large"),
    ],
)
def test_what_will_never_do(failure: Failure) -> None:
    assert isinstance(classify(failure, NOW), Unusable)


def test_december_is_followed_by_january() -> None:
    spent = Failure(429, "…", "rate_limit_error", "enforced_spend_limit_reached")
    verdict = classify(spent, dt.datetime(2026, 12, 31, 23, 0, tzinfo=dt.UTC))
    assert isinstance(verdict, Away) and verdict.seconds == HOUR


def test_a_reason_is_one_clean_line() -> None:
    verdict = classify(Failure(500, "a\x1b[31m\nb\u202e" + "c" * 9999, "api_error\n"), NOW)
    assert verdict.reason.startswith("The API answered 500 api_error: a bccc")
    assert len(verdict.reason) < 400


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "17"}, 17.0),
        ({"retry-after": "0.05"}, 0.05),
        ({"retry-after-ms": "250", "retry-after": "17"}, 0.25),
        ({"retry-after": "Sat, 21 Nov 2026 13:00:00 GMT"}, HOUR),
        ({"retry-after": "Sat, 21 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds
