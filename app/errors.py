"""Every error that a caller may meet: stable code, HTTP status and Swedish words on the class.

An `AppError` is an answer, not a bug: the API turns it into RFC 9457 problem details and the
worker into a run's `error_code`. Anything else that escapes is a bug and answers 500.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class AppError(Exception):
    """An expected failure. Subclasses fix `code`, `status` and the default Swedish `detail`."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internt fel"
    default_detail: ClassVar[str] = "Något gick fel. Försök igen om en stund."

    def __init__(
        self,
        detail: str | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        self.detail = detail or self.default_detail
        self.details = dict(details or {})
        self.retry_after_seconds = retry_after_seconds
        super().__init__(self.detail)


# --- 400, 401, 403, 404, 405 ----------------------------------------------------------------


class MalformedRequest(AppError):
    code, status, title = "malformed_request", 400, "Felaktig begäran"
    default_detail = "Begäran gick inte att tolka."


class NotAuthenticated(AppError):
    code, status, title = "not_authenticated", 401, "Inte inloggad"
    default_detail = "Du behöver logga in."


class BadCredentials(NotAuthenticated):
    code = "bad_credentials"
    default_detail = "Fel användarnamn eller lösenord."


class Forbidden(AppError):
    code, status, title = "forbidden", 403, "Ingen behörighet"
    default_detail = "Du har inte behörighet att göra detta."


class CsrfFailed(Forbidden):
    code = "csrf_failed"
    default_detail = "Säkerhetsnyckeln saknas eller är för gammal. Ladda om sidan och försök igen."


class NotFound(AppError):
    code, status, title = "not_found", 404, "Hittades inte"
    default_detail = "Det du söker finns inte, eller så har du inte tillgång till det."


class MethodNotAllowed(AppError):
    code, status, title = "method_not_allowed", 405, "Metoden stöds inte"
    default_detail = "Den metoden stöds inte på den här adressen."


# --- 409, 410, 413, 415, 416 ----------------------------------------------------------------


class Conflict(AppError):
    code, status, title = "conflict", 409, "Konflikt"
    default_detail = "Det har ändrats under tiden. Ladda om och försök igen."


class StateRevConflict(Conflict):
    code = "state_rev_conflict"
    default_detail = (
        "Steget är redan taget, kanske i en annan flik. Ladda om och fortsätt därifrån."
    )


class SessionBusy(Conflict):
    code = "session_busy"
    default_detail = "Ett steg körs redan. Vänta tills det är klart eller avbryt det."


class RunFinished(Conflict):
    code = "run_finished"
    default_detail = "Körningen är redan klar."


class EditConflict(Conflict):
    code = "edit_conflict"
    default_detail = "Någon annan har sparat en nyare version. Ladda om innan du sparar."


class SessionFilesExpired(AppError):
    code, status, title = "session_files_expired", 410, "Filerna har gallrats"
    default_detail = (
        "De uppladdade filerna har sparats så länge som de får och är nu borttagna. "
        "Ladda upp dem igen för att fortsätta."
    )


class PayloadTooLarge(AppError):
    code, status, title = "payload_too_large", 413, "För stort"
    default_detail = "Begäran är för stor."


class FileTooLarge(PayloadTooLarge):
    code = "file_too_large"
    default_detail = "Filen är för stor."


class UploadTooLarge(PayloadTooLarge):
    code = "upload_too_large"
    default_detail = "Filerna är tillsammans för stora."


class TooManyFiles(PayloadTooLarge):
    code = "too_many_files"
    default_detail = "För många filer."


class FieldTooLarge(PayloadTooLarge):
    code = "field_too_large"
    default_detail = "Ett av formulärets fält är för stort."


class UnsupportedMediaType(AppError):
    code, status, title = "unsupported_media_type", 415, "Formatet stöds inte"
    default_detail = "Innehållstypen stöds inte här."


class RangeNotSatisfiable(AppError):
    code, status, title = "range_not_satisfiable", 416, "Utanför filen"
    default_detail = "Den begärda delen ligger utanför filen."


# --- 422 ------------------------------------------------------------------------------------


class Invalid(AppError):
    code, status, title = "invalid_request", 422, "Ogiltiga uppgifter"
    default_detail = "Uppgifterna går inte att använda."


class InvalidInputs(Invalid):
    code = "invalid_inputs"
    default_detail = "Något i formuläret är inte rätt ifyllt."


class InvalidActionInput(Invalid):
    code = "invalid_action_input"
    default_detail = "Något i formuläret är inte rätt ifyllt."


class InvalidContext(Invalid):
    code = "invalid_context"
    default_detail = "Sammanhanget (session_context) är inte giltigt."


class InvalidMode(Invalid):
    code = "invalid_mode"
    default_detail = "session_files_mode ska vara none, reuse eller clear."


class DuplicateFileNames(Invalid):
    code = "duplicate_file_names"
    default_detail = "Två av filerna har samma namn. Byt namn på den ena."


class InvalidFileName(Invalid):
    code = "invalid_file_name"
    default_detail = "Filnamnet går inte att använda."


class UnknownAction(Invalid):
    code = "unknown_action"
    default_detail = "Det steget erbjuds inte längre."


class FilesRequired(Invalid):
    code = "files_required"
    default_detail = "Verktyget behöver minst en fil."


class FilesNotAccepted(Invalid):
    code = "files_not_accepted"
    default_detail = "Verktyget tar inte emot de här filerna."


class InvalidInputSchema(Invalid):
    code = "invalid_input_schema"
    default_detail = "Verktygets formulär är inte rätt beskrivet."


class InvalidSource(Invalid):
    code = "invalid_source"
    default_detail = "Verktygets kod går inte att köra."


# --- 429, 503 -------------------------------------------------------------------------------


class TooManyRequests(AppError):
    code, status, title = "too_many_requests", 429, "För många försök"
    default_detail = "För många försök. Vänta en stund."


class TooManyRuns(TooManyRequests):
    code = "too_many_runs"
    default_detail = "Du har redan flera körningar på gång. Vänta tills någon är klar."


class Unavailable(AppError):
    """A dependency is down; `details["dependency"]` names it."""

    code, status, title = "unavailable", 503, "Tillfälligt fel"
    default_detail = "Tjänsten är tillfälligt otillgänglig. Försök igen om en stund."

    def __init__(self, dependency: str, detail: str | None = None) -> None:
        super().__init__(detail, details={"dependency": dependency}, retry_after_seconds=5)


class FileDamaged(AppError):
    """The stored bytes are not those that were uploaded."""

    code, status, title = "file_damaged", 503, "Skadad fil"
    default_detail = "En av filerna är skadad och går inte att läsa. Ladda upp filerna igen."
