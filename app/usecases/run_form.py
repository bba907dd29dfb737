"""The form of an initial run, read as it arrives: files go straight on to S3, fields are kept.

Nothing that is read here takes effect. Leaving the block without a commit deletes what was stored.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

import msgspec

from app.domain.files import UploadLimits, normalize_file_name
from app.domain.runs import RunSource
from app.domain.sessions import DEFAULT_CONTEXT, SessionFilesMode, parse_context, parse_mode
from app.domain.tools import InputSchema, file_field
from app.domain.users import User
from app.errors import FilesNotAccepted, InvalidInputs, MalformedRequest
from app.store.session_files import SessionFilesKey, SessionFileStorageProtocol, SessionUpload


class FormPart(Protocol):
    """A part of a multipart body; its content can be read once, before the next part."""

    @property
    def name(self) -> str: ...
    @property
    def filename(self) -> str | None: ...
    @property
    def content_type(self) -> str: ...
    def chunks(self) -> AsyncIterator[bytes]: ...
    async def text(self) -> str: ...


@dataclass(frozen=True)
class RunTarget:
    """What to run, with which form; for the editor's test runs also the context of them."""

    tool_id: UUID
    source: RunSource
    input_schema: InputSchema
    fixed_context: str | None = None


class RunForm:
    """Reads `files`, `inputs`, `session_context` and `session_files_mode`, in whatever order."""

    def __init__(
        self,
        storage: SessionFileStorageProtocol,
        limits: UploadLimits,
        user: User,
        target: RunTarget,
    ) -> None:
        self._storage = storage
        self._limits = limits
        self._user_id: UUID = user.id
        self._target = target
        self._stack = AsyncExitStack()
        self.context = target.fixed_context or DEFAULT_CONTEXT
        self.mode = SessionFilesMode.NONE
        self.inputs: dict[str, Any] = {}
        self.upload: SessionUpload | None = None

    async def __aenter__(self) -> "RunForm":
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._stack.__aexit__(*exc)

    @property
    def key(self) -> SessionFilesKey:
        return SessionFilesKey(self._target.tool_id, self._user_id, self.context)

    async def read(self, parts: AsyncIterator[FormPart]) -> None:
        """Read the whole form. Raises what is wrong with it as soon as that can be told."""
        async for part in parts:
            match part.name:
                case "files":
                    await self._read_file(part)
                case "inputs":
                    self.inputs = _parse_inputs(await part.text())
                case "session_context":
                    self._set_context(await part.text())
                case "session_files_mode":
                    self.mode = parse_mode(await part.text())
                case other:
                    raise MalformedRequest(
                        f"Okänt fält i formuläret: {other[:100]}", details={"field": other[:100]}
                    )

    def _set_context(self, raw: str) -> None:
        if self._target.fixed_context is not None:
            return  # A test run's context is the version's own, whatever the form says.
        context = parse_context(raw)
        if self.upload is not None and context != self.context:
            # The files are on their way to where the context says; it has to be known first.
            raise MalformedRequest("session_context måste stå före filerna i formuläret.")
        self.context = context

    async def _read_file(self, part: FormPart) -> None:
        if part.filename is None:
            raise MalformedRequest("Fältet files ska innehålla filer, med filnamn.")
        if part.filename == "":
            # What a browser sends for a file field that was left empty.
            async for chunk in part.chunks():
                if chunk:
                    raise MalformedRequest("En fil saknar namn.")
            return
        self._check_accepted(part.filename)
        if self.upload is None:
            self.upload = await self._stack.enter_async_context(
                self._storage.begin_upload(self.key, self._limits)
            )
        await self.upload.add_file(part.filename, part.content_type, part.chunks())

    def _check_accepted(self, raw_name: str) -> None:
        field = file_field(self._target.input_schema)
        if field is None:
            raise FilesNotAccepted("Verktyget tar inte emot några filer.")
        name = normalize_file_name(raw_name)
        if field.accept and not name.lower().endswith(field.accept):
            raise FilesNotAccepted(
                f"”{name}” är inte av rätt slag. Verktyget tar emot {', '.join(field.accept)}.",
                details={"name": name, "accept": list(field.accept)},
            )
        count = 1 if self.upload is None else len(self.upload.files) + 1
        if field.max is not None and count > field.max:
            raise FilesNotAccepted(
                f"Verktyget tar emot högst {field.max} filer.", details={"max": field.max}
            )


def _parse_inputs(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        raise InvalidInputs("inputs ska vara ett JSON-objekt.") from None
