"""Multipart bodies as they should not come, and what they answer (RFC 7578)."""

from typing import Any

import pytest
from problems import check_problem
from service import Client, Service
from steps import Way, list_blobs

BOUNDARY = "x-boundary"


def make_part(disposition: str, content: bytes = b"") -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n"
    return head.encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
A_FILE = make_part('name="files"; filename="a.txt"', b"a")
FORMS: dict[str, tuple[bytes, int, str | None]] = {
    "fields after the files": (
        A_FILE + make_part('name="inputs"', b'{"do": "x"}') + END,
        202,
        None,
    ),
    "same context after the files": (
        A_FILE + make_part('name="session_context"', b" default ") + END,
        202,
        None,
    ),
    "other context after the files": (
        A_FILE + make_part('name="session_context"', b"klass") + END,
        400,
        "malformed_request",
    ),
    "file field left empty": (make_part('name="files"; filename=""') + END, 202, None),
    "content without a name": (
        make_part('name="files"; filename=""', b"a") + END,
        400,
        "malformed_request",
    ),
    "files without filename": (make_part('name="files"', b"a") + END, 400, "malformed_request"),
    "unknown field": (make_part('name="fil"', b"a") + END, 400, "malformed_request"),
    "part without a name": (A_FILE + make_part('x="y"', b"a") + END, 400, "malformed_request"),
    "text that is no UTF-8": (make_part('name="inputs"', b"\xff") + END, 400, "malformed_request"),
    "text over its cap": (
        make_part('name="inputs"', b" " * 1_000_001) + END,
        413,
        "field_too_large",
    ),
    "too many parts": (make_part('name="inputs"', b"{}") * 60 + END, 413, "payload_too_large"),
    "ends early": (A_FILE, 400, "malformed_request"),
    "ends in the middle of a file": (A_FILE[:-3], 400, "malformed_request"),
    "no multipart at all": (b"hello", 400, "malformed_request"),
    "nothing": (b"", 400, "malformed_request"),
}


@pytest.mark.parametrize("name", FORMS)
def test_oddities_of_multipart_bodies(service: Service, reporter: Way, name: str) -> None:
    body, status, code = FORMS[name]
    answer = reporter.client.post(
        f"/tools/{reporter.slug}/run",
        content=body,
        headers={"content-type": f"multipart/form-data; boundary={BOUNDARY}"},
    )
    if code is None:
        assert answer.status_code == status, answer.text
    else:
        check_problem(answer, status, code)
        assert list_blobs(service, reporter.tool_id) == []


@pytest.mark.parametrize(
    "media_type",
    ["multipart/form-data", "application/json", "multipart/mixed; boundary=x", "", "nonsense"],
)
def test_a_form_is_multipart_with_a_boundary(
    anna: Client, quiet: dict[str, Any], media_type: str
) -> None:
    headers = {"content-type": media_type}
    answer = anna.post(f"/tools/{quiet['slug']}/run", content=A_FILE + END, headers=headers)
    check_problem(answer, 415, "unsupported_media_type")


def test_file_names_are_what_the_browser_meant(reporter: Way) -> None:
    # Browsers send UTF-8 as it is and escape the quotation mark.
    name = 'Läsår "åäö".txt'
    disposition = 'name="files"; filename="Läsår %22åäö%22.txt"'
    answer = reporter.client.post(
        f"/tools/{reporter.slug}/run",
        content=make_part(disposition, b"a") + END,
        headers={"content-type": f"multipart/form-data; boundary={BOUNDARY}"},
    )
    assert answer.status_code == 202, answer.text
    assert reporter.files() == [name]
