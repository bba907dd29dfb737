"""What every error of the API looks like, and every call that its document names."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx

# An id that nobody has.
NOWHERE = "00000000-0000-0000-0000-000000000007"


def check_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Hold an answer against the one shape of errors; returns its `details`."""
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    members = {"type", "title", "status", "detail", "code", "details", "correlation_id"}
    assert set(problem) == members
    assert problem["status"] == status
    assert problem["type"] == f"urn:skriptoteket:problem:{code}"
    assert problem["correlation_id"] == answer.headers["x-correlation-id"]
    assert isinstance(problem["details"], dict)
    leaks = r"/work|/tmp|site-packages|Traceback|SELECT|INSERT|asyncpg|msgspec|Expected|Object "
    assert not re.search(leaks, answer.text), answer.text
    details: dict[str, Any] = problem["details"]
    return details


def call_all(
    document: dict[str, Any], skip: Callable[[str, dict[str, Any]], bool]
) -> Iterator[Any]:
    """Yield (method, path with ids that nobody has, example body) of the operations not skipped."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if skip(path, operation):
                continue
            body = operation.get("requestBody", {}).get("content", {})
            given = {}
            if "application/json" in body:
                given = {"json": body["application/json"]["example"]}
            elif "multipart/form-data" in body:
                given = {"files": [("files", ("a.html", b"a"))]}
            yield method, re.sub(r"{\w+}", NOWHERE, path.removeprefix("/api/v1")), given
