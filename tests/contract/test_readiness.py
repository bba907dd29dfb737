"""Readiness: a node is taken out for what it cannot do without, and for nothing else."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from s3_servers import Nodes

from app.api import health
from app.devstack import DevStack
from app.settings import load_settings
from app.store import lifecycle
from app.wiring import Services, open_services

OPERATION = "get_bucket_lifecycle_configuration"


@pytest.fixture
async def services(nodes: Nodes, devstack: DevStack) -> AsyncIterator[Services]:
    server = nodes.variant.server
    environment = devstack.environment() | {
        "S3_ENDPOINT_URL": server.endpoint,
        "S3_ACCESS_KEY": server.access_key,
        "S3_SECRET_KEY": server.secret_key,
        "S3_BUCKET": nodes.bucket,
    }
    async with open_services(load_settings(environment)) as services:
        yield services


async def ask(services: Services) -> tuple[int, str, str | None]:
    """Ask for readiness: the status, and that of S3 with what is said of it."""
    answer: Any = await health.show_ready.fn(services)
    s3 = answer.content.dependencies["s3"]
    return answer.status_code, s3.status, s3.detail


async def test_a_node_that_may_not_see_the_rules_is_ready(nodes: Nodes, services: Services) -> None:
    assert await ask(services) == (200, "ok", "lifecycle rules: drifted")
    if nodes.variant.server.name != "ceph":
        return  # Nobody is ever refused by it.
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:GetLifecycleConfiguration",
        "Resource": f"arn:aws:s3:::{nodes.bucket}",
    }
    policy = {"Version": "2012-10-17", "Statement": [deny]}
    await nodes.variant.client.put_bucket_policy(Bucket=nodes.bucket, Policy=json.dumps(policy))
    assert await ask(services) == (200, "ok", "lifecycle rules: drifted"), "not asked again so soon"
    services.lifecycle._ask_at = 0.0
    assert await ask(services) == (200, "ok", "lifecycle rules: unknown")


@pytest.mark.parametrize("variant", ["embedded"], indirect=True, scope="session")
@pytest.mark.parametrize("code", ["AccessDenied", "InvalidRequest", None])
async def test_rules_that_are_not_told_take_no_node_out(
    services: Services, monkeypatch: pytest.MonkeyPatch, code: str | None
) -> None:
    """Denied, refused, or not answered at all."""

    async def answer(**_: Any) -> None:
        if code is None:
            await asyncio.Event().wait()
        status = 403 if code == "AccessDenied" else 400
        told: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
        raise ClientError(told, OPERATION)

    monkeypatch.setattr(services.objects._client, OPERATION, answer, raising=False)
    monkeypatch.setattr(lifecycle, "WATCH_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(health, "CHECK_TIMEOUT_SECONDS", 0.5)
    assert await ask(services) == (200, "ok", "lifecycle rules: unknown")


@pytest.mark.parametrize("variant", ["embedded"], indirect=True, scope="session")
@pytest.mark.parametrize("status", [400, 403, 404, 501])
async def test_a_bucket_that_is_refused_takes_the_node_out(
    services: Services, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    async def refuse(**_: Any) -> None:
        # To a HEAD there is no body to say more.
        told: Any = {
            "Error": {"Code": str(status)},
            "ResponseMetadata": {
                "HTTPStatusCode": status,
                "HTTPHeaders": {"date": "Sat, 21 Nov 2026 12:00:00 GMT"},
            },
        }
        raise ClientError(told, "HeadBucket")

    monkeypatch.setattr(services.objects._client, "head_bucket", refuse, raising=False)
    assert await ask(services) == (503, "unavailable", None)


def test_the_watch_gives_up_before_who_asks_does() -> None:
    assert lifecycle.WATCH_TIMEOUT_SECONDS < health.CHECK_TIMEOUT_SECONDS
