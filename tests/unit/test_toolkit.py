"""What tools import: it reads what is there, never raises for what is not, refuses to escape."""

import json
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "infra" / "runner"))

import skriptoteket_toolkit as toolkit

NAMES = ("INPUT_DIR", "OUTPUT_DIR", "INPUT_MANIFEST", "INPUTS", "ACTION", "PROGRESS_FD")


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in NAMES:
        monkeypatch.delenv(f"SKRIPTOTEKET_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def output_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "ut"
    path.mkdir()
    monkeypatch.setenv("SKRIPTOTEKET_OUTPUT_DIR", str(path))
    return path


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    reader, writer = os.pipe()
    monkeypatch.setenv("SKRIPTOTEKET_PROGRESS_FD", str(writer))
    yield reader
    os.close(reader)
    os.close(writer)


def test_everything_missing_reads_as_empty() -> None:
    assert toolkit.read_inputs() == {}
    assert toolkit.read_action() is None
    assert toolkit.get_action_parts() == (None, {}, {})
    assert toolkit.list_input_files() == []
    toolkit.progress(0.5, "ingen lyssnar")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"', "[" * 100_000])
def test_unreadable_variables_read_as_empty(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    for name in ("INPUT_MANIFEST", "INPUTS", "ACTION"):
        monkeypatch.setenv(f"SKRIPTOTEKET_{name}", text)
    assert toolkit.read_inputs() == {}
    assert toolkit.get_action_parts() == (None, {}, {})
    assert toolkit.list_input_files() == []


def test_inputs_and_action_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKRIPTOTEKET_INPUTS", '{"namn":"Åsa"}')
    payload = {"action_id": "gå", "input": {"a": 1}, "state": {"b": [2]}}
    monkeypatch.setenv("SKRIPTOTEKET_ACTION", json.dumps(payload))
    assert toolkit.read_inputs() == {"namn": "Åsa"}
    assert toolkit.read_action() == payload
    assert toolkit.get_action_parts() == ("gå", {"a": 1}, {"b": [2]})


def test_parts_of_the_wrong_type_read_as_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKRIPTOTEKET_ACTION", '{"action_id":7,"input":null,"state":[]}')
    assert toolkit.get_action_parts() == (None, {}, {})


def test_the_manifest_names_the_files_in_its_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, content in (("b.txt", "bb"), ("a.txt", "a"), ("c.txt", "")):
        (tmp_path / name).write_text(content)
    entries = [{"name": f"{n}.txt", "path": str(tmp_path / f"{n}.txt"), "bytes": 9} for n in "ba"]
    broken = [{"name": "borta", "path": str(tmp_path / "borta"), "bytes": 1}, None, {"name": 3}]
    monkeypatch.setenv("SKRIPTOTEKET_INPUT_MANIFEST", json.dumps({"files": [*entries, *broken]}))
    files = toolkit.list_input_files()
    assert [(file.name, file.bytes, file.path.read_text()) for file in files] == [
        ("b.txt", 2, "bb"),
        ("a.txt", 1, "a"),
    ]


def test_without_a_manifest_the_directory_is_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    (folder / "mapp").mkdir(parents=True)
    (folder / "ö.txt").write_text("ö")
    (folder / "a.txt").write_text("a")
    monkeypatch.setenv("SKRIPTOTEKET_INPUT_DIR", str(folder))
    assert [file.name for file in toolkit.list_input_files()] == ["a.txt", "ö.txt"]


def test_output_path_makes_the_folders_of_the_name(output_dir: Path) -> None:
    path = toolkit.output_path("klass 5B/åk/brev.pdf")
    path.write_text("x")
    assert path == output_dir / "klass 5B" / "åk" / "brev.pdf"


@pytest.mark.parametrize(
    "name", ["", ".", "/etc/passwd", "../x", "a/../../x", "a\\b", "a\x00b", "a\nb", "å" * 128]
)
def test_output_path_refuses_a_name(output_dir: Path, name: str) -> None:
    with pytest.raises(toolkit.ToolUserError, match="Filnamnet"):
        toolkit.output_path(name)
    assert list(output_dir.iterdir()) == []


def test_output_path_refuses_to_follow_a_link_out(output_dir: Path, tmp_path: Path) -> None:
    (output_dir / "ute").symlink_to(tmp_path)
    with pytest.raises(toolkit.ToolUserError):
        toolkit.output_path("ute/fil.txt")


def test_progress_is_one_line_of_json(pipe: int) -> None:
    toolkit.progress(0.25, "Läser\n sida\t1")
    toolkit.progress(7, "å" * 9000)
    toolkit.progress(float("nan"), "\ud800")
    lines = [json.loads(line) for line in os.read(pipe, 65536).splitlines()]
    assert lines[0] == {"fraction": 0.25, "text": "Läser sida 1"}
    assert lines[1] == {"fraction": 1.0, "text": "å" * 500}
    assert lines[2] == {"fraction": 0.0, "text": "?"}


def test_progress_never_waits_for_a_slow_reader(pipe: int) -> None:
    for _ in range(2000):  # far more than a pipe holds
        toolkit.progress(0.5, "x" * 400)
    lines = os.read(pipe, 1_000_000).splitlines()
    assert 10 < len(lines) < 2000
    assert all(json.loads(line)["fraction"] == 0.5 for line in lines)


@pytest.mark.parametrize("fd", ["", "x", "-1", "98765"])
def test_progress_ignores_a_descriptor_that_is_none(
    monkeypatch: pytest.MonkeyPatch, fd: str
) -> None:
    monkeypatch.setenv("SKRIPTOTEKET_PROGRESS_FD", fd)
    toolkit.progress(1, "klart")


def test_outputs_have_the_shapes_of_the_contract() -> None:
    assert toolkit.notice("Hej", "warning") == {
        "kind": "notice",
        "level": "warning",
        "message": "Hej",
    }
    assert toolkit.markdown("# Å") == {"kind": "markdown", "markdown": "# Å"}
    assert toolkit.html("<p>") == {"kind": "html_sandboxed", "html": "<p>"}
    assert toolkit.json_output([1], "T") == {"kind": "json", "title": "T", "value": [1]}
    assert toolkit.json_output(None) == {"kind": "json", "value": None}
    assert toolkit.vega_lite({"mark": "bar"}) == {"kind": "vega_lite", "spec": {"mark": "bar"}}
    assert toolkit.table([("n", "Namn"), "p"], [{"n": "Åsa", "p": 1}], "Klass") == {
        "kind": "table",
        "title": "Klass",
        "columns": [{"key": "n", "label": "Namn"}, {"key": "p", "label": "p"}],
        "rows": [{"n": "Åsa", "p": 1}],
    }


def test_actions_have_the_shapes_of_the_contract() -> None:
    fields = [
        toolkit.string_field("a", "A", required=True),
        toolkit.text_field("b", "B"),
        toolkit.integer_field("c", "C"),
        toolkit.number_field("d", "D"),
        toolkit.boolean_field("e", "E"),
        toolkit.enum_field("f", "F", {"1": "Ett"}),
        toolkit.multi_enum_field("g", "G", ["x", ("y", "Y")]),
    ]
    offer = toolkit.action("gör", "Gör det", fields, {"a": "å"})
    assert {key: offer[key] for key in ("action_id", "label", "kind", "prefill")} == {
        "action_id": "gör",
        "label": "Gör det",
        "kind": "form",
        "prefill": {"a": "å"},
    }
    assert offer["fields"] == fields
    assert [field["kind"] for field in fields] == (
        ["string", "text", "integer", "number", "boolean", "enum", "multi_enum"]
    )
    assert fields[0] == {"name": "a", "label": "A", "kind": "string", "required": True}
    assert fields[5]["options"] == [{"value": "1", "label": "Ett"}]
    assert fields[6]["options"] == [{"value": "x", "label": "x"}, {"value": "y", "label": "Y"}]
    assert "prefill" not in toolkit.action("a", "A")


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "utf-16-be with a mark"]
)
def test_text_is_read_whatever_a_teacher_s_program_wrote(encoding: str) -> None:
    text = "Namn;Poäng\nÅsa Öberg;7"
    if encoding == "utf-16-be with a mark":
        data = b"\xfe\xff" + text.encode("utf-16-be")
    else:
        data = text.encode(encoding)
    assert toolkit.decode_text(data) == text


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff", b"\xff\xfea", b"\x81\x8d", b"a\0b\0c"])
def test_bytes_of_any_kind_are_read_as_some_text(data: bytes) -> None:
    assert isinstance(toolkit.decode_text(data), str)


def test_styles_weigh_ten_times_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "bok.xlsx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", bytes(1_000))
        archive.writestr("xl/styles.xml", bytes(500))
    assert toolkit.weigh_workbook(path) == 1_000 + 10 * 500
    path.write_bytes(b"PK")
    with pytest.raises(zipfile.BadZipFile):
        toolkit.weigh_workbook(path)


def test_the_message_of_a_user_error_is_its_text() -> None:
    error = toolkit.ToolUserError("Ladda upp en fil.")
    assert error.message == str(error) == "Ladda upp en fil."
