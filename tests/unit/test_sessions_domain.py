"""Contexts and modes of tool sessions."""

import hashlib
from uuid import UUID

import pytest

from app.domain.sessions import (
    SessionFilesMode,
    context_key,
    parse_context,
    parse_mode,
    sandbox_context,
)
from app.errors import InvalidContext, InvalidMode

VERSION_ID = UUID(int=7)


@pytest.mark.parametrize(
    ("raw", "context"),
    [
        (None, "default"),
        ("", "default"),
        (" \t\n", "default"),
        ("default", "default"),
        ("  klass 7b  ", "klass 7b"),
        ("åäö ÅÄÖ é 日本", "åäö ÅÄÖ é 日本"),
        ("x" * 64, "x" * 64),
        (" " + "å" * 64 + " ", "å" * 64),
        ("sandbox", "sandbox"),
        ("min sandbox:x", "min sandbox:x"),
    ],
)
def test_a_context_is_trimmed_and_blank_means_default(raw: str | None, context: str) -> None:
    assert parse_context(raw) == context


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("x" * 65, "högst 64 tecken"),
        ("å" * 65, "högst 64 tecken"),
        ("sandbox:", "får inte börja med"),
        ("  sandbox:x", "får inte börja med"),
        (sandbox_context(VERSION_ID), "får inte börja med"),
        ("a\tb", "osynliga"),
        ("a\0b", "osynliga"),
        ("a\u200bb", "osynliga"),
        ("a\u2028b", "osynliga"),
    ],
)
def test_a_context_that_cannot_be_is_refused(raw: str, words: str) -> None:
    with pytest.raises(InvalidContext) as refused:
        parse_context(raw)
    assert words in refused.value.detail


@pytest.mark.parametrize("raw", ["SANDBOX:x", "Sandbox:x"])
def test_the_reserved_prefix_is_the_prefix_as_it_is_written(raw: str) -> None:
    # Contexts are compared byte for byte, so no other spelling can reach a sandbox session.
    assert parse_context(raw) == raw
    assert context_key(raw) != context_key(raw.lower())


def test_a_sandbox_context_names_its_version_and_fits() -> None:
    context = sandbox_context(VERSION_ID)
    assert context == f"sandbox:{VERSION_ID}"
    assert len(context) <= 64


@pytest.mark.parametrize("context", ["default", "../..", "å ä ö", "a/b"])
def test_the_key_of_a_context_is_its_sha256(context: str) -> None:
    assert context_key(context) == hashlib.sha256(context.encode("utf-8")).hexdigest()


@pytest.mark.parametrize(
    ("raw", "mode"),
    [
        (None, SessionFilesMode.NONE),
        ("", SessionFilesMode.NONE),
        ("none", SessionFilesMode.NONE),
        (" reuse ", SessionFilesMode.REUSE),
        ("clear", SessionFilesMode.CLEAR),
    ],
)
def test_a_mode_defaults_to_none(raw: str | None, mode: SessionFilesMode) -> None:
    assert parse_mode(raw) is mode


@pytest.mark.parametrize("raw", ["keep", "Reuse", "none,clear", "0"])
def test_an_unknown_mode_is_refused(raw: str) -> None:
    with pytest.raises(InvalidMode):
        parse_mode(raw)
