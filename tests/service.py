"""A running service for tests, and a client that speaks to it as a page or a program would."""

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx

from app.dev import DEV_USERS, DevService

TIMEOUT_SECONDS = 60


class Client(httpx.Client):
    """A logged-in user at one API node; paths are relative to `/api/v1`."""

    def run_tool(self, slug: str, *, wait: int | None = 30, **form: Any) -> httpx.Response:
        """Start a tool: `files` as [(name, content), …]; other fields as the form's texts."""
        return self._post_form(f"/tools/{slug}/run", wait, form)

    def run_sandbox(self, version_id: str, *, wait: int | None = 30, **form: Any) -> httpx.Response:
        return self._post_form(f"/editor/tool-versions/{version_id}/run-sandbox", wait, form)

    def start_action(
        self, path: str, body: dict[str, Any], *, wait: int | None = 30
    ) -> httpx.Response:
        return self.post(path, json=body, headers=_prefer(wait))

    def take_step(self, slug: str, action_id: str, input: dict[str, Any], **turn: Any) -> Any:
        """Take one step of a published tool's session as it is now, and return the ended run."""
        session = self.get(f"/tools/{slug}/session").json()
        body = {
            "tool_id": session["tool_id"],
            "context": session["context"],
            "action_id": action_id,
            "input": input,
            "expected_state_rev": session["state_rev"],
        } | turn
        answer = self.start_action("/start_action", body)
        assert answer.status_code == 200, answer.text
        return self.get(f"/runs/{answer.json()['run_id']}").json()

    def _post_form(self, path: str, wait: int | None, form: dict[str, Any]) -> httpx.Response:
        files = [("files", item) for item in form.pop("files", [])]
        # A form without files is multipart all the same: that is what the route takes.
        fields = [(name, (None, value)) for name, value in form.items()]
        parts = [*fields, *files] or [("session_files_mode", (None, "none"))]
        return self.post(path, files=parts, headers=_prefer(wait))


@dataclass(frozen=True)
class Service:
    """A running service and its seeded users."""

    running: DevService

    def client(self, username: str = "anna", node: int = 0) -> Client:
        """Log in as one of the seeded users at one of the nodes."""
        url = self.running.urls[node % len(self.running.urls)]
        client = Client(base_url=f"{url}/api/v1", timeout=TIMEOUT_SECONDS)
        user = next(user for user in DEV_USERS if user.username == username)
        login = {"username": user.username, "password": user.password}
        answer = client.post("/auth/login", json=login)
        assert answer.status_code == 200, answer.text
        client.headers["x-csrftoken"] = client.cookies["csrftoken"]
        return client

    def publish(
        self, slug: str, source: str, input_schema: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Add a tool as the admin, or a new version of it, and publish: the version."""
        with closing(self.client("admin")) as admin:
            found = [t for t in _items(admin, "/editor/tools") if t["slug"] == slug]
            if found:
                tool = found[0]
            else:
                body = {"slug": slug, "title": slug.replace("_", " ").title()}
                tool = admin.post("/editor/tools", json=body).raise_for_status().json()
            code = {"source": source, "input_schema": input_schema or []}
            version = (
                admin.post(f"/editor/tools/{tool['id']}/versions", json=code)
                .raise_for_status()
                .json()
            )
            published: dict[str, Any] = (
                admin.post(f"/editor/tool-versions/{version['id']}/publish")
                .raise_for_status()
                .json()
            )
            return published


def _items(client: httpx.Client, path: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor = None
    while True:
        params = {"limit": "200"} | ({} if cursor is None else {"cursor": cursor})
        page = client.get(path, params=params).raise_for_status().json()
        items += page["items"]
        if (cursor := page["next_cursor"]) is None:
            return items


def _prefer(wait: int | None) -> dict[str, str]:
    return {} if wait is None else {"Prefer": f"wait={wait}"}
