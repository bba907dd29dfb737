"""`skriptoteket demo`: the main job end to end, as a real HTTP client would do it.

A throw-away service with two API nodes and two workers; each step goes to another node than the
step before, and the PDF at the end has to hold the text of the page that was uploaded first.
"""

import html
import io
import itertools
import re
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from pypdf import PdfReader
from rich.console import Console

from app.dev import DEV_USERS, run_service
from app.devstack import DevStackError, free_port
from app.usecases.seed import SCRIPT_BANK

SAMPLE = SCRIPT_BANK / "html_to_pdf_preview" / "sample"
TOOL = "html_to_pdf_preview"
STEP_TIMEOUT_SECONDS = 120

console = Console()


class DemoFailed(Exception):
    """A step did not do what it should; the message says what was off."""


def run_demo(output_dir: Path) -> int:
    """Show the whole way and save the PDF in `output_dir`; returns the exit code."""
    started = time.monotonic()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="skriptoteket-demo-") as data_dir,
            ExitStack() as running,
        ):
            ports = [free_port(), free_port()]
            with _step("Start PostgreSQL, Valkey, S3, two API nodes and two workers"):
                service = running.enter_context(run_service(Path(data_dir), ports=ports, workers=2))
            pdf = _convert_sample(service.urls)
            with _step("Stop everything"):
                running.close()
        output_dir.mkdir(parents=True, exist_ok=True)
        target = output_dir / "veckobrev.pdf"
        target.write_bytes(pdf)
    except (DemoFailed, DevStackError, httpx.HTTPError) as error:
        console.print(f"[bold red]The demo failed:[/] {error}")
        return 1
    console.print(
        f"[bold green]Done[/] in {time.monotonic() - started:.1f} s: {target} ({len(pdf)} bytes)"
    )
    return 0


def _convert_sample(urls: list[str]) -> bytes:
    with _Clients(urls) as clients:
        with _step("Log in"):
            clients.log_in()
        names = sorted(path.name for path in SAMPLE.iterdir())
        with _step(f"Upload {', '.join(names)} and run {TOOL}"):
            run = clients.post_form(f"/tools/{TOOL}/run")
            _check(run["status"] == "succeeded", f"the run ended as {run['status']}: {run}")
        with _step("Read the payload from the other node"):
            run = clients.get(f"/runs/{run['run_id']}")
            offered = [action["label"] for action in run["ui_payload"]["next_actions"]]
            _check("Konvertera till PDF" in offered, f"the tool offers {offered}")
        with _step("Press ”Konvertera till PDF”, without uploading again"):
            session = clients.get(f"/tools/{TOOL}/session")
            action = session["next_actions"][0]
            turn = {
                "tool_id": session["tool_id"],
                "context": session["context"],
                "action_id": action["action_id"],
                "input": action.get("prefill", {}),
                "expected_state_rev": session["state_rev"],
            }
            started = clients.post("/start_action", turn)
        with _step("Wait for the PDF on the other node"):
            finished = clients.get(f"/runs/{started['run_id']}", wait=True)
            _check(
                finished["status"] == "succeeded",
                f"the action ended as {finished['status']}: {finished['error_summary']}",
            )
        with _step("Download the PDF"):
            listed = clients.get(f"/runs/{started['run_id']}/artifacts")["artifacts"]
            _check(len(listed) == 1, f"expected one file, got {listed}")
            pdf = clients.download(listed[0]["download_url"])
        with _step("Check that it is a PDF with the page's text, å ä ö included"):
            _check_pdf(pdf)
    return pdf


class _Clients:
    """One HTTP client a node, used in turn, with the login of the first for all."""

    def __init__(self, urls: list[str]) -> None:
        self._clients = [httpx.Client(base_url=url, timeout=STEP_TIMEOUT_SECONDS) for url in urls]
        self._turn = itertools.cycle(self._clients)

    def __enter__(self) -> "_Clients":
        return self

    def __exit__(self, *exc: Any) -> None:
        for client in self._clients:
            client.close()

    def log_in(self) -> None:
        user = DEV_USERS[0]
        client = next(self._turn)
        login = {"username": user.username, "password": user.password}
        _accepted(client.post("/api/v1/auth/login", json=login))
        for other in self._clients:
            other.cookies.update(client.cookies)
            other.headers["x-csrftoken"] = client.cookies["csrftoken"]

    def get(self, path: str, *, wait: bool = False) -> dict[str, Any]:
        headers = {"Prefer": "wait=30"} if wait else {}
        return _accepted(next(self._turn).get(f"/api/v1{path}", headers=headers))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return _accepted(next(self._turn).post(f"/api/v1{path}", json=body))

    def post_form(self, path: str) -> dict[str, Any]:
        files = [("files", (item.name, item.read_bytes())) for item in sorted(SAMPLE.iterdir())]
        headers = {"Prefer": "wait=30"}
        return _accepted(next(self._turn).post(f"/api/v1{path}", files=files, headers=headers))

    def download(self, url: str) -> bytes:
        response = next(self._turn).get(url)
        _check(response.status_code == 200, f"{url} answered {response.status_code}")
        return response.content


def _accepted(response: httpx.Response) -> dict[str, Any]:
    _check(
        response.is_success,
        f"{response.request.method} {response.request.url.path} answered "
        f"{response.status_code}: {response.text[:500]}",
    )
    body: dict[str, Any] = response.json()
    return body


def _check_pdf(pdf: bytes) -> None:
    _check(pdf.startswith(b"%PDF-"), "the file is not a PDF")
    text = "".join(page.extract_text() for page in PdfReader(io.BytesIO(pdf)).pages)
    found = set(_words(text))
    page = (SAMPLE / "veckobrev.html").read_text("utf-8")
    visible = re.sub(r"<(style|title|head)\b.*?</\1>|<[^>]+>", " ", page, flags=re.S)
    wanted = {word for word in _words(html.unescape(visible)) if len(word) > 3}
    missing = sorted(wanted - found)
    # Hyphenation and line breaks may split a few words; most of them have to be there.
    _check(len(missing) <= len(wanted) // 10, f"the PDF lacks words of the page: {missing[:10]}")
    _check(set("åäö") <= set("".join(found)), "the PDF lacks å, ä or ö")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFC", text).lower())


def _check(is_right: bool, words: str) -> None:
    if not is_right:
        raise DemoFailed(words)


@contextmanager
def _step(words: str) -> Iterator[None]:
    """Show a spinner while the step works, then the time that it took."""
    started = time.monotonic()
    with console.status(f"{words} …"):
        yield
    console.print(f"  [green]✓[/] {words}  [dim]{(time.monotonic() - started) * 1000:.0f} ms[/]")
