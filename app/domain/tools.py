"""Tools, their versions and the fields of their forms."""

import ast
import re
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from app.domain.users import Role
from app.errors import InvalidInputSchema, InvalidSource

FieldKind = Literal["string", "text", "integer", "number", "boolean", "enum", "multi_enum", "file"]
VersionStatus = Literal["draft", "published"]
DEFAULT_ENTRYPOINT = "run_tool"
MAX_FIELDS = 60
MAX_SOURCE_BYTES = 1_000_000
_SLUG = re.compile(r"[a-z0-9åäö][a-z0-9åäö_-]{0,79}")


class Option(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A choice of an enum field."""

    value: str
    label: str


class InputField(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True
):
    """A field of a tool's form; `accept`, `min` and `max` belong to the file field alone."""

    name: str
    label: str
    kind: FieldKind
    required: bool = False
    options: tuple[Option, ...] = ()
    accept: tuple[str, ...] = ()
    min: int = 0
    max: int | None = None


InputSchema = tuple[InputField, ...]


class ToolCode(msgspec.Struct, frozen=True):
    """What a version of a tool executes, and the form that it asks for."""

    source: str
    entrypoint: str = DEFAULT_ENTRYPOINT
    input_schema: InputSchema = ()


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool as its editors and the catalogue see it."""

    id: UUID
    slug: str
    title: str
    summary: str
    usage_instructions: str
    owner_id: UUID | None
    published_version_id: UUID | None
    curated_app_id: str | None = None
    curated_app_version: str | None = None
    min_role: Role = "user"
    created_at: datetime
    updated_at: datetime


class ToolVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a tool's code; a published one never changes."""

    id: UUID
    tool_id: UUID
    number: int
    status: VersionStatus
    source: str
    entrypoint: str
    input_schema: InputSchema
    rev: int
    created_at: datetime
    updated_at: datetime
    published_at: datetime | None

    @property
    def code(self) -> ToolCode:
        return ToolCode(self.source, self.entrypoint, self.input_schema)


def parse_input_schema(raw: Any) -> InputSchema:
    """Check a form description (3-runner-contract.md, input_schema).

    Raises:
        InvalidInputSchema: wrong shape, two file fields, doubled names, an enum without options,
            `required` on a file field.
    """
    try:
        fields = msgspec.convert(raw, InputSchema)
    except msgspec.ValidationError as error:
        # Where it is, as a path such as `$[2].options`; what is wrong is said in English only.
        place = str(error).rpartition("at `")[2].rstrip("`") if "at `" in str(error) else "$"
        raise InvalidInputSchema(details={"place": place[:200]}) from None
    problem = _schema_problem(fields)
    if problem is not None:
        raise InvalidInputSchema(problem)
    return fields


def _schema_problem(fields: InputSchema) -> str | None:
    if len(fields) > MAX_FIELDS:
        return f"Formuläret får ha högst {MAX_FIELDS} fält."
    names = [field.name for field in fields]
    if len(set(names)) != len(names):
        return "Två fält har samma namn."
    if sum(field.kind == "file" for field in fields) > 1:
        return "Formuläret får ha högst ett filfält."
    for field in fields:
        is_choice = field.kind in {"enum", "multi_enum"}
        if not field.name.strip() or not field.label.strip():
            return "Varje fält behöver ett namn och en etikett."
        if is_choice != bool(field.options):
            return f"Fältet ”{field.name}” ska ha alternativ om, och bara om, det är ett val."
        values = [option.value for option in field.options]
        if len(set(values)) != len(values):
            return f"Fältet ”{field.name}” har två alternativ med samma värde."
        if field.kind == "file" and field.required:
            return f"Filfältet ”{field.name}” har inget required: använd min, till exempel 1."
        if field.kind != "file" and (field.accept or field.min or field.max is not None):
            return f"accept, min och max hör till filfältet, inte till ”{field.name}”."
        if field.min < 0 or (field.max is not None and field.max < max(field.min, 1)):
            return f"min och max går inte ihop i ”{field.name}”."
        if any(not re.fullmatch(r"\.[a-z0-9.]+", ending) for ending in field.accept):
            return f"accept i ”{field.name}” ska vara filändelser som .html."
    return None


def file_field(schema: InputSchema) -> InputField | None:
    return next((field for field in schema if field.kind == "file"), None)


def check_source(source: str, entrypoint: str) -> None:
    """Find what would keep the code from starting, before a sandbox does.

    Raises:
        InvalidSource: a syntax error (with its line), no such entrypoint, or too much code.
    """
    if len(source.encode("utf-8", "surrogatepass")) > MAX_SOURCE_BYTES:
        raise InvalidSource(f"Koden får vara högst {MAX_SOURCE_BYTES} byte.")
    try:
        tree = ast.parse(source, "script.py")
    except SyntaxError as error:
        if error.lineno is None:  # a NUL, which is no code at all
            raise InvalidSource("Koden går inte att tolka.") from None
        raise InvalidSource(
            f"Koden har ett syntaxfel på rad {error.lineno}.",
            # What Python says of its author's code, as the author will read it in tracebacks too.
            details={"line": error.lineno, "column": error.offset, "python_message": error.msg},
        ) from None
    except (ValueError, RecursionError, MemoryError):
        raise InvalidSource("Koden går inte att tolka.") from None
    if not entrypoint.isidentifier() or entrypoint not in _top_level_names(tree):
        raise InvalidSource(f"Koden saknar funktionen {entrypoint}(input_dir, output_dir).")


def _top_level_names(tree: ast.Module) -> set[str]:
    """Names that the module may bind: generous, since only running tells for certain."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
    return names


def is_slug(text: str) -> bool:
    return _SLUG.fullmatch(text) is not None
