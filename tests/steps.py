"""A user's way through one tool, published or in the sandbox, each request at the next node."""

import asyncio
import itertools
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from service import TIMEOUT_SECONDS, Client, Service

from app.dev import DEV_USERS
from app.settings import load_settings
from app.store.objects import open_object_store

START_OVER = "skriptoteket:start_over"


def action_ids(offered: dict[str, Any]) -> list[str]:
    """The ids of what a session or a payload offers, in order."""
    return [action["action_id"] for action in offered["next_actions"]]


class TurnTransport(httpx.BaseTransport):
    """Sends each request to the next node, whatever its address says."""

    def __init__(self, urls: list[str]) -> None:
        self._nodes = itertools.cycle([httpx.URL(url).port for url in urls])
        self._transport = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(port=next(self._nodes))
        return self._transport.handle_request(request)

    def close(self) -> None:
        self._transport.close()


class DocumentCheck:
    """A client's hook: no answer has a status, or an error's code, that /schema does not tell."""

    def __init__(self, url: str) -> None:
        document = httpx.get(f"{url}/schema", timeout=TIMEOUT_SECONDS).raise_for_status().json()
        self._operations = [
            (method.upper(), _match_path(path), operation["responses"])
            for path, item in document["paths"].items()
            for method, operation in item.items()
        ]

    def __call__(self, answer: httpx.Response) -> None:
        method, path = answer.request.method, answer.request.url.path
        for one_method, pattern, responses in self._operations:
            if one_method == method and pattern.fullmatch(path):
                self._check(answer, responses)
                return

    def _check(self, answer: httpx.Response, responses: dict[str, Any]) -> None:
        named = f"{answer.request.method} {answer.request.url.path} -> {answer.status_code}"
        assert str(answer.status_code) in responses, f"not documented: {named}"
        if answer.headers.get("content-type") == "application/problem+json":
            content = responses[str(answer.status_code)]["content"]
            code = json.loads(answer.read())["code"]
            assert code in content["application/problem+json"]["examples"], f"{named} {code}"


def _match_path(template: str) -> re.Pattern[str]:
    pattern = re.escape(template).replace(r"\{path\}", ".+")
    return re.compile(re.sub(r"\\{\w+\\}", "[^/]+", pattern))


@contextmanager
def log_in(service: Service, username: str) -> Iterator[Client]:
    """Log in a seeded user for whom no two requests in a row meet the same node."""
    urls = service.running.urls
    client = Client(
        base_url=f"{urls[0]}/api/v1", timeout=TIMEOUT_SECONDS, transport=TurnTransport(urls)
    )
    client.event_hooks["response"].append(DocumentCheck(urls[0]))
    with closing(client):
        user = next(user for user in DEV_USERS if user.username == username)
        login = {"username": user.username, "password": user.password}
        client.post("/auth/login", json=login).raise_for_status()
        client.headers["x-csrftoken"] = client.cookies["csrftoken"]
        yield client


@dataclass(frozen=True)
class Way:
    """One tool session of one user: the published tool's or the editor's test session."""

    client: Client
    tool_id: str
    version_id: str
    slug: str
    is_sandbox: bool
    context: str = "default"

    @property
    def _path(self) -> str:
        if self.is_sandbox:
            return f"/editor/tool-versions/{self.version_id}"
        return f"/tools/{self.slug}"

    @property
    def _query(self) -> dict[str, str]:
        return {} if self.is_sandbox else {"context": self.context}

    def send(self, *, wait: int | None = 30, **form: Any) -> httpx.Response:
        """Start an initial run."""
        if self.is_sandbox:
            return self.client.run_sandbox(self.version_id, wait=wait, **form)
        return self.client.run_tool(
            self.slug, wait=wait, **({"session_context": self.context} | form)
        )

    def run(self, **form: Any) -> dict[str, Any]:
        """Start an initial run and return it when it has ended."""
        answer = self.send(**form)
        assert answer.status_code == 200, answer.text
        run: dict[str, Any] = answer.json()
        return run

    def send_action(
        self, action_id: str = "next", *, wait: int | None = 30, **turn: Any
    ) -> httpx.Response:
        """Take a step at the session's present revision, unless `turn` says otherwise."""
        body = {"action_id": action_id, "input": {}} | turn
        if "expected_state_rev" not in body:
            body["expected_state_rev"] = self.session()["state_rev"]
        if self.is_sandbox:
            return self.client.start_action(f"{self._path}/start-action", body, wait=wait)
        body |= {"tool_id": self.tool_id, "context": self.context}
        return self.client.start_action("/start_action", body, wait=wait)

    def act(self, action_id: str = "next", **turn: Any) -> dict[str, Any]:
        """Take a step and return its run when it has ended."""
        answer = self.send_action(action_id, **turn)
        assert answer.status_code == 200, answer.text
        return self.get_run(answer.json()["run_id"])

    def get_run(self, run_id: str, *, wait: int | None = None) -> dict[str, Any]:
        headers = {} if wait is None else {"Prefer": f"wait={wait}"}
        run: dict[str, Any] = (
            self.client.get(f"/runs/{run_id}", headers=headers).raise_for_status().json()
        )
        return run

    def session(self) -> dict[str, Any]:
        answer = self.client.get(f"{self._path}/session", params=self._query)
        session: dict[str, Any] = answer.raise_for_status().json()
        return session

    def files(self) -> list[str]:
        """Names of the saved files."""
        return [file["name"] for file in self.saved()["files"]]

    def saved(self) -> dict[str, Any]:
        answer = self.client.get(f"{self._path}/session-files", params=self._query)
        saved: dict[str, Any] = answer.raise_for_status().json()
        return saved

    def clear(self) -> httpx.Response:
        return self.client.delete(f"{self._path}/session-files", params=self._query)


def publish(
    service: Service, source: str, input_schema: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Publish a tool under a name of its own: its version, with the `slug`."""
    slug = f"prov-{uuid.uuid4().hex[:12]}"
    return service.publish(slug, source, input_schema) | {"slug": slug}


def list_objects(service: Service, prefix: str) -> list[str]:
    """List the bucket itself: keys under a prefix, unfinished multipart uploads included."""

    async def collect() -> list[str]:
        async with open_object_store(load_settings(service.running.environment)) as objects:
            keys = [info.key async for info in objects.list_objects(prefix)]
            return keys + [upload.key async for upload in objects.list_multipart(prefix)]

    return asyncio.run(collect())


def delete_objects(service: Service, prefix: str) -> int:
    """Delete what lies under a prefix, as a lifecycle rule would: how many there were."""

    async def delete() -> int:
        async with open_object_store(load_settings(service.running.environment)) as objects:
            return await objects.delete([info.key async for info in objects.list_objects(prefix)])

    return asyncio.run(delete())


def list_blobs(service: Service, tool_id: str) -> list[str]:
    """The blobs of every session of a tool."""
    return list_objects(service, f"sessions/files/{tool_id}/")
