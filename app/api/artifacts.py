"""/runs/{id}/artifacts: the files that a run produced, listed and streamed."""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any
from urllib.parse import quote
from uuid import UUID

from litestar import Response, Router, get
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.response import Stream

from app.api.deps import AnyRequest
from app.api.errors import problem_response
from app.api.schemas import (
    ArtifactLink,
    ArtifactList,
)
from app.domain.users import User
from app.errors import NotFound, RangeNotSatisfiable
from app.store.object_types import ObjectMissing
from app.wiring import Services


@get("/{run_id:uuid}/artifacts")
async def list_artifacts(
    services: NamedDependency[Services], user: NamedDependency[User], run_id: FromPath[UUID]
) -> ArtifactList:
    """The files that a run produced, with where to get them."""
    run = await services.runs.get_run(user, run_id)
    return ArtifactList(
        run_id=run.id,
        artifacts=[
            ArtifactLink(
                path=artifact.path,
                bytes=artifact.bytes,
                download_url=f"/api/v1/runs/{run.id}/artifacts/{quote(artifact.path)}",
            )
            for artifact in run.artifacts
        ],
    )


@get("/{run_id:uuid}/artifacts/{path:path}")
async def download_artifact(
    request: AnyRequest,
    services: NamedDependency[Services],
    user: NamedDependency[User],
    run_id: FromPath[UUID],
    path: FromPath[str],
) -> Response[Any]:
    """One file, streamed as an attachment; a single byte range is honoured (RFC 9110 §14)."""
    run = await services.runs.get_run(user, run_id)
    index = _find_artifact([artifact.path for artifact in run.artifacts], path.lstrip("/"))
    size = run.artifacts[index].bytes
    headers = {
        "Content-Disposition": content_disposition(run.artifacts[index].path),
        "X-Content-Type-Options": "nosniff",
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-store",
    }
    # No answer has a validator: whoever makes the range depend on one gets everything.
    span = (
        None if "if-range" in request.headers else parse_range(request.headers.get("range"), size)
    )
    if span is None:
        start, end, status_code = 0, size, 200
    elif span[0] >= size:
        error = RangeNotSatisfiable(details={"bytes": size})
        return problem_response(error, {"Content-Range": f"bytes */{size}"})
    else:
        start, end, status_code = span[0], span[1], 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    return Stream(
        await _open_artifact(services, run_id, index, (start, end)),
        status_code=status_code,
        media_type="application/octet-stream",
        headers=headers,
    )


async def _open_artifact(
    services: Services, run_id: UUID, index: int, span: tuple[int, int]
) -> AsyncIterator[bytes]:
    """Return an artifact's bytes; what is wrong is raised here, while a status can still say it."""
    start, end = span

    async def read() -> AsyncGenerator[bytes, None]:
        if start == end:
            return
        async with services.artifacts.open(
            run_id, index, offset=start, length=end - start
        ) as artifact:
            async for chunk in artifact.chunks:
                yield chunk

    chunks = read()
    try:
        first = await anext(chunks, b"")
    except ObjectMissing:
        # Kept for a time only (ARTIFACT_RETENTION_DAYS); the run that lists it is kept longer.
        raise NotFound("Filen har gallrats. Kör verktyget igen för att få en ny.") from None

    async def send() -> AsyncIterator[bytes]:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    return send()


def content_disposition(path: str) -> str:
    """Build the attachment header with both forms of the name (RFC 6266 §4.3, RFC 8187)."""
    name = path.rsplit("/", 1)[-1]
    # Also without %, which some browsers would decode (RFC 6266, appendix D).
    plain = re.sub(r"[^ !#$&-\[\]-~]", "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _find_artifact(paths: list[str], wanted: str) -> int:
    # ADR-0024 lists `output/report.pdf` and downloads `…/artifacts/report.pdf`: both are good.
    for candidate in (wanted, f"output/{wanted}"):
        if candidate in paths:
            return paths.index(candidate)
    raise NotFound


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return [start, end) of a single range; None to send everything (no, odd or many ranges)."""
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", (header or "").strip(), re.I)
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        count = int(last)
        return (size, size) if count == 0 else (max(size - count, 0), size)
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size


router = Router("/runs", route_handlers=[list_artifacts, download_artifact], tags=["runs"])
