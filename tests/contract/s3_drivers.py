"""Drivers of S3 of which a test takes over some calls, below all retries and errors of our own."""

from collections.abc import Awaitable, Callable, Collection
from typing import Any

from botocore.exceptions import ClientError
from s3_servers import Node

Call = Callable[..., Awaitable[Any]]


class Driver:
    """A driver that makes all calls but these as another one does."""

    def __init__(self, driver: Any, calls: dict[str, Call]) -> None:
        self._driver, self._calls = driver, calls

    def __getattr__(self, name: str) -> Any:
        return self._calls.get(name) or getattr(self._driver, name)


def take_over(node: Node, **calls: Call) -> Any:
    """Answer these calls of a node's; returns the driver that it had."""
    driver = node.store._client
    node.store._client = Driver(driver, calls)
    return driver


def lock_objects(node: Node, locked: Collection[str]) -> None:
    """Refuse to delete some keys, within answers that are right otherwise (Object Lock)."""

    async def delete_objects(**params: Any) -> Any:
        asked = params["Delete"]["Objects"]
        free = [one for one in asked if one["Key"] not in locked]
        errors = [one | {"Code": "AccessDenied"} for one in asked if one not in free]
        # A request for nothing would be refused as a whole.
        sent = free or [{"Key": "no-such-key"}]
        answer = await driver.delete_objects(**params | {"Delete": {"Objects": sent}})
        return answer | {"Errors": errors}

    driver = take_over(node, delete_objects=delete_objects)


def refusal(operation: str, status: int, code: str) -> ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, operation)
