"""pdf_slå_ihop: the right pages in the right order, said plainly when a file does not allow it."""

import io
import os
import re
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pypdf import PdfReader, PdfWriter
from pypdf.annotations import Link
from pypdf.generic import (
    ArrayObject,
    DictionaryObject,
    EncodedStreamObject,
    NameObject,
    NumberObject,
)
from script_bank import Result, Session, check_catalogue_entry, load_tool, read_sample
from skriptoteket_toolkit import ToolUserError

tool = load_tool("pdf_sla_ihop")
ENDS_HERE = "Det gick inte att läsa sidorna: a.pdf är skadad."


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    return Session(tool, tmp_path, monkeypatch)


def make_pdf(*widths: int, height: int = 300, **lock: str) -> bytes:
    """A PDF with a page of each width, by which tests know it again."""
    writer = PdfWriter()
    for width in widths:
        writer.add_blank_page(width, height)
    if lock:
        writer.encrypt(**lock)  # type: ignore[arg-type]
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def widths(data: bytes) -> list[int]:
    return [round(page.mediabox.width) for page in PdfReader(io.BytesIO(data)).pages]


def act(session: Session, files: dict[str, Any], action_id: str, **form: object) -> Result:
    session.start(files)
    return session.act(action_id, **form)


def rows(result: Result) -> list[dict[str, Any]]:
    (table,) = result.outputs("table")
    return list(table["rows"])


def bookmarks(data: bytes) -> list[Any]:
    reader = PdfReader(io.BytesIO(data))

    def plain(items: list[Any]) -> list[Any]:
        return [
            plain(item)
            if isinstance(item, list)
            else (item.title, reader.get_destination_page_number(item))
            for item in items
        ]

    return plain(reader.outline)


LOCKED = {"user_password": "hemligt", "owner_password": "ägare", "algorithm": "RC4-128"}
READABLE = {"user_password": "", "owner_password": "ägare", "algorithm": "RC4-128"}
TWO = {"a.pdf": make_pdf(101, 102, 103), "b.pdf": make_pdf(201, 202)}


# --- the sample, and what is shown ----------------------------------------------------------------


def test_it_can_be_seeded_under_its_swedish_slug() -> None:
    assert check_catalogue_entry("pdf_sla_ihop").slug == "pdf_slå_ihop"


def test_sample_is_shown_as_a_table_with_what_can_be_done(session: Session) -> None:
    result = session.start(read_sample("pdf_sla_ihop"))
    found = [(row["number"], row["name"], row["pages"], row["paper"]) for row in rows(result)]
    assert found == [(1, "facit.pdf", 1, "A4 liggande"), (2, "prov-bråk.pdf", 3, "A4 stående")]
    assert {row["state"] for row in rows(result)} == {"Öppen"}
    actions = [action["action_id"] for action in result.raw["next_actions"]]
    assert actions == ["merge", "pick", "split", "rotate"]
    assert result.notices == "" and result.files == {}


def test_sample_is_merged_with_a_bookmark_for_each_file(session: Session) -> None:
    result = act(session, read_sample("pdf_sla_ihop"), "merge", order="egen", own_order="2, 1")
    data = result.files["sammanslagen.pdf"]
    reader = PdfReader(io.BytesIO(data))
    texts = [" ".join(page.extract_text().split()) for page in reader.pages]
    assert texts[0].startswith("Prov i bråk") and texts[3].startswith("Facit")
    assert [item[:2] for item in bookmarks(data) if isinstance(item, tuple)] == [
        ("prov-bråk", 0),
        ("facit", 3),
    ]
    assert reader.metadata and reader.metadata.title == "sammanslagen"
    assert "sammanslagen.pdf (" in result.notices and "4 sidor ur 2 filer" in result.notices


def test_papers_and_sizes_are_named(session: Session) -> None:
    mm = 72 / 25.4
    files: dict[str, Any] = {
        "a3.pdf": make_pdf(round(420 * mm), height=round(297 * mm)),
        "olika.pdf": make_pdf(100, 200, 300),
        "två.pdf": make_pdf(round(210 * mm), round(148 * mm), height=round(297 * mm)),
    }
    writer = PdfWriter()
    writer.add_blank_page(round(297 * mm), round(210 * mm)).rotate(90)
    out = io.BytesIO()
    writer.write(out)
    files["vriden.pdf"] = out.getvalue()
    papers = [row["paper"] for row in rows(session.start(files))]
    assert papers == ["A3 liggande", "olika", "A4 stående och 148 × 297 mm", "A4 stående"]


def test_one_file_offers_no_merging_and_asks_for_no_file(session: Session) -> None:
    result = session.start({"a.pdf": make_pdf(101)})
    assert [a["action_id"] for a in result.raw["next_actions"]] == ["pick", "split", "rotate"]
    assert "file" not in {f["name"] for a in result.raw["next_actions"] for f in a["fields"]}


# --- merging --------------------------------------------------------------------------------------


def test_files_are_merged_as_uploaded_by_name_or_as_written(session: Session) -> None:
    files = {name: make_pdf(width) for name, width in (("c 10", 1), ("ä", 2), ("C 2", 3), ("å", 4))}
    files = {f"{name}.pdf": data for name, data in files.items()}
    orders = [
        ({}, [1, 2, 3, 4]),
        ({"order": "namn"}, [3, 1, 4, 2]),
        ({"order": "egen", "own_order": "3-4, 1"}, [3, 4, 1]),
        ({"order": "egen", "own_order": "4-1"}, [4, 3, 2, 1]),
        ({"order": "egen", "own_order": "2 2"}, [2, 2]),
    ]
    for form, expected in orders:
        result = act(session, files, "merge", **form)
        assert widths(result.files["sammanslagen.pdf"]) == expected
    assert "Inte med: c 10.pdf, C 2.pdf, å.pdf." in result.notices
    assert result.action("merge")["prefill"] == {"order": "egen", "own_order": "2 2"}


def test_own_bookmarks_stay_below_that_of_their_file(session: Session) -> None:
    writer = PdfWriter()
    for width in (101, 102):
        writer.add_blank_page(width, 100)
    chapter = writer.add_outline_item(title="Kapitel", page_number=1)
    writer.add_outline_item(title="Avsnitt", page_number=1, parent=chapter)
    out = io.BytesIO()
    writer.write(out)
    result = act(session, {"x.pdf": make_pdf(1), "bok.pdf": out.getvalue()}, "merge")
    expected = [("x", 0), ("bok", 1), [("Kapitel", 2), [("Avsnitt", 2)]]]
    assert bookmarks(result.files["sammanslagen.pdf"]) == expected


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("Läxor v. 12", "Läxor v. 12.pdf"),
        ("häfte.pdf", "häfte.pdf"),
        ("../../etc/passwd", "etc passwd.pdf"),
        ("   ", "sammanslagen.pdf"),
        ("a/b:c*", "a b c.pdf"),
        ("å" * 300, "å" * 100 + ".pdf"),
    ],
)
def test_the_merged_file_gets_the_name_that_was_wished(
    session: Session, name: str, made: str
) -> None:
    assert list(act(session, TWO, "merge", name=name).files) == [made]


# --- picking, splitting, turning ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pages", "expected", "name"),
    [
        ("1-3, 5, 8-", [1, 2, 3, 5, 8, 9], "a sidor 1-3, 5, 8-9"),
        ("4", [4], "a sida 4"),
        ("-2;9", [1, 2, 9], "a sidor 1-2, 9"),
        ("3 – 1", [3, 2, 1], "a sidor 3, 2, 1"),
        ("2,2", [2, 2], "a sidor 2, 2"),
        ("9-1, 1-9, 9-1", [*range(9, 0, -1), *range(1, 10), *range(9, 0, -1)], "a urval"),
    ],
)
def test_pages_are_picked_in_the_order_written(
    session: Session, pages: str, expected: list[int], name: str
) -> None:
    files = {"x.pdf": make_pdf(50), "a.pdf": make_pdf(*range(1, 10))}
    result = act(session, files, "pick", file="2", pages=pages)
    assert {n: widths(d) for n, d in result.files.items()} == {f"{name}.pdf": expected}


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ("0", "Sida 0 finns inte: den sista är 3"),
        ("2-4", "Sida 4 finns inte: den sista är 3"),
        ("999999999", "Sida 999999999 finns inte"),
        ("ett", "”ett” går inte att förstå"),
        ("1-2-3", "”1-2-3” går inte att förstå"),
        ("-", "”-” går inte att förstå"),
        ("1.5", "”1.5” går inte att förstå"),
        ("1234567890", "går inte att förstå"),
        (",;", "Skriv vilka det gäller"),
        ("1-3," * 4_000, "Det blir för många sidor: högst 10000"),
    ],
)
def test_pages_that_are_none_are_explained(pages: str, message: str) -> None:
    with pytest.raises(ToolUserError, match=re.escape(message)):
        tool.parse_ranges(pages, 3)


def test_files_that_do_not_exist_are_explained(session: Session) -> None:
    with pytest.raises(ToolUserError, match="Fil 3 finns inte: den sista är 2"):
        act(session, TWO, "merge", order="egen", own_order="1,3")
    with pytest.raises(ToolUserError, match="Skriv vilka det gäller"):
        act(session, TWO, "merge", order="egen")


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"how": "varje"}, {f"a sida {n:02}.pdf": [n] for n in range(1, 11)}),
        (
            {"how": "antal", "each": 4},
            {
                "a sida 01-04.pdf": [1, 2, 3, 4],
                "a sida 05-08.pdf": [5, 6, 7, 8],
                "a sida 09-10.pdf": [9, 10],
            },
        ),
        (
            {"how": "vid", "at": "10, 3"},
            {
                "a sida 01-02.pdf": [1, 2],
                "a sida 03-09.pdf": [*range(3, 10)],
                "a sida 10.pdf": [10],
            },
        ),
        ({"how": "antal", "each": 99}, {"a sida 01-10.pdf": [*range(1, 11)]}),
    ],
)
def test_a_file_is_split_in_all_three_ways(
    session: Session, form: dict[str, Any], expected: dict[str, list[int]]
) -> None:
    result = act(session, {"a.pdf": make_pdf(*range(1, 11))}, "split", **form)
    assert {name: widths(data) for name, data in result.files.items()} == expected


def test_a_split_into_too_many_files_proposes_one_that_works(session: Session) -> None:
    files = {"a.pdf": make_pdf(*range(1, 121))}
    result = act(session, files, "split", how="varje")
    assert result.files == {}
    assert "det skulle bli 120 filer, men högst 50 går bra" in result.notices
    assert "Med 3 sidor per fil blir det 40 filer" in result.notices
    again = session.act("split")
    assert len(again.files) == 40
    fifty = session.act("split", how="vid", at=", ".join(map(str, range(2, 51))))
    assert len(fifty.files) == 50 and widths(fifty.files["a sida 050-120.pdf"])[0] == 50


@pytest.mark.parametrize("form", [{"how": "antal"}, {"how": "antal", "each": 0}, {"how": "vid"}])
def test_splits_that_lack_a_figure_are_explained(session: Session, form: dict[str, Any]) -> None:
    with pytest.raises(ToolUserError, match="Skriv "):
        act(session, TWO, "split", **form)


def test_pages_are_turned_and_the_others_are_not(session: Session) -> None:
    result = act(session, TWO, "rotate", file="1", degrees="270", pages="2-")
    pages = PdfReader(io.BytesIO(result.files["a vriden.pdf"])).pages
    assert [page.rotation for page in pages] == [0, 270, 270]
    result = session.act("rotate", degrees="180", pages="")
    pages = PdfReader(io.BytesIO(result.files["a vriden.pdf"])).pages
    assert [page.rotation for page in pages] == [180, 180, 180]


def test_links_do_not_drag_other_pages_along(session: Session) -> None:
    writer = PdfWriter()
    photo = io.BytesIO()
    Image.frombytes("RGB", (300, 300), os.urandom(270_000)).save(photo, "PDF")
    writer.add_blank_page(100, 100)
    writer.append(photo)
    writer.add_annotation(0, Link(rect=(0, 0, 50, 50), target_page_index=1))
    out = io.BytesIO()
    writer.write(out)
    result = act(session, {"a.pdf": out.getvalue()}, "split", how="varje")
    assert len(result.files["a sida 1.pdf"]) < 5_000 < len(result.files["a sida 2.pdf"])


# --- locked files ---------------------------------------------------------------------------------


def test_a_locked_file_is_shown_and_opened_with_its_password(session: Session) -> None:
    files = {"öppen.pdf": make_pdf(1), "låst.pdf": make_pdf(2, 3, **LOCKED)}
    start = session.start(files)
    assert [row["state"] for row in rows(start)] == ["Öppen", "Låst, kräver lösenord"]
    assert rows(start)[1]["pages"] is None
    assert "Låst med lösenord: låst.pdf." in start.notices
    for password in ({}, {"password": "fel"}):
        with pytest.raises(ToolUserError, match=r"låst\.pdf är låst\. Skriv rätt lösenord"):
            session.act("merge", **password)
    result = session.act("merge", password="hemligt")
    merged = result.files["sammanslagen.pdf"]
    assert widths(merged) == [1, 2, 3] and not PdfReader(io.BytesIO(merged)).is_encrypted
    assert "Den nya filen är inte låst." in result.notices
    # The password is asked for again, and is not in what the page is told.
    fields = {f["name"] for f in result.action("merge")["fields"]}
    assert "password" in fields and "hemligt" not in str(result.raw)
    picked = session.act("pick", file="2", pages="2", password="ägare")
    assert widths(picked.files["låst sida 2.pdf"]) == [3]
    picked = act(session, files, "pick", file="1", pages="1")
    assert list(picked.files) == ["öppen sida 1.pdf"]


def test_a_file_locked_against_changes_only_needs_no_password(session: Session) -> None:
    start = session.start({"a.pdf": make_pdf(1, 2, **READABLE)})
    assert rows(start)[0]["state"] == "Låst, men går att läsa"
    assert "password" not in {f["name"] for f in start.action("split")["fields"]}
    result = session.act("rotate")
    assert not PdfReader(io.BytesIO(result.files["a vriden.pdf"])).is_encrypted
    assert "Den nya filen är inte låst." in result.notices


def test_a_lock_that_cannot_be_opened_here_is_told_of(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise tool.DependencyError("cryptography>=3.1 is required for AES algorithm")

    monkeypatch.setattr(tool.PdfReader, "decrypt", fail)
    with pytest.raises(ToolUserError, match=r"a\.pdf är låst på ett sätt som inte går att öppna"):
        session.start({"a.pdf": make_pdf(1, **LOCKED)})


# --- files that are no PDFs, or not quite ---------------------------------------------------------


def make_bomb() -> bytes:
    """A PDF of 130 kB whose cross-reference stream unpacks to 128 MB."""
    packed = zlib.compress(bytes(128_000_000), 9)
    head = b"%PDF-1.5\n1 0 obj<</Type/XRef/Size 2/W[1 2 1]/Root 1 0 R/Filter/FlateDecode/Length "
    body = head + str(len(packed)).encode() + b">>stream\n" + packed + b"\nendstream\nendobj\n"
    return body + b"startxref\n9\n%%EOF"


def make_looped() -> bytes:
    writer = PdfWriter()
    writer.add_blank_page(1, 1)
    pages: Any = writer.root_object["/Pages"]
    pages["/Kids"].append(pages.indirect_reference)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a.pdf är tom"),
        (b"\n \n", "a.pdf är tom"),
        (b"PK\x03\x04 docx", "a.pdf är ingen PDF utan ett Word-dokument eller en zip-fil"),
        (b"\xff\xd8\xff\xe0", "a.pdf är ingen PDF utan en bild"),
        (b"<!DOCTYPE html>", "a.pdf är ingen PDF utan en webbsida"),
        (b"bara text", "a.pdf är ingen PDF."),
        (b"%PDF-1.7\n" + b"x" * 500, "är skadad"),
        (make_pdf(1, 2, 3)[:400], "är skadad"),
        (make_pdf(), "a.pdf har inga sidor"),
        (make_looped(), "är skadad"),
    ],
    ids=range(10),
)
def test_what_is_no_pdf_is_refused_with_swedish_words(
    session: Session, data: bytes, message: str
) -> None:
    with pytest.raises(ToolUserError, match=re.escape(message)):
        session.start({"a.pdf": data})


def test_a_file_that_unpacks_to_too_much_is_never_unpacked(session: Session) -> None:
    files = {"a.pdf": make_bomb(), "b.pdf": make_pdf(1)}
    tracemalloc.start()
    try:
        notices = session.start(files).notices
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "a.pdf är skadad" in notices
    assert peak < 70_000_000


def test_no_file_at_all_is_refused(session: Session) -> None:
    with pytest.raises(ToolUserError, match="Ladda upp minst en PDF"):
        session.start({})


def test_one_bad_file_does_not_stop_the_others(session: Session) -> None:
    files = {"bild.pdf": b"\x89PNG", "a.pdf": make_pdf(1), "tom.pdf": b"", "b.pdf": make_pdf(2)}
    start = session.start(files)
    assert [row["state"] for row in rows(start)] == [
        "Går inte att läsa",
        "Öppen",
        "Går inte att läsa",
        "Öppen",
    ]
    assert "bild.pdf är ingen PDF utan en bild" in start.notices
    assert [o["value"] for o in start.field("pick", "file")["options"]] == ["2", "4"]
    result = session.act("merge")
    assert widths(result.files["sammanslagen.pdf"]) == [1, 2]
    assert "tom.pdf är tom" in result.notices
    with pytest.raises(ToolUserError, match="Fil 1 går inte att läsa"):
        session.act("merge", order="egen", own_order="4, 1")


@pytest.mark.parametrize("damage", ["/Next", "/First", "/Title", "/Dest", "deep"])
def test_broken_bookmarks_cost_no_pages(session: Session, damage: str) -> None:
    writer = PdfWriter()
    writer.add_blank_page(7, 7)
    item = writer.add_outline_item(title="x", page_number=0)
    if damage == "deep":
        for _ in range(150):
            item = writer.add_outline_item(title="x", page_number=0, parent=item)
    else:
        value = NumberObject(5) if damage in {"/Title", "/Dest"} else item
        item.get_object()[NameObject(damage)] = value  # type: ignore[index]
    out = io.BytesIO()
    writer.write(out)
    result = act(session, {"a.pdf": out.getvalue(), "b.pdf": make_pdf(8)}, "merge")
    assert widths(result.files["sammanslagen.pdf"]) == [7, 8]


def test_a_page_that_cannot_be_copied_is_told_of(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RecursionError

    session.start({"a.pdf": make_pdf(1)})
    for name, action_id in (("append", "pick"), ("write", "pick"), ("write", "rotate")):
        with monkeypatch.context() as patch:
            patch.setattr(tool.PdfWriter, name, fail)
            with pytest.raises(ToolUserError, match=re.escape(ENDS_HERE)):
                session.act(action_id, pages="1")


def test_signatures_and_forms_are_warned_of(session: Session) -> None:
    writer = PdfWriter()
    writer.add_blank_page(1, 1)
    form = DictionaryObject({NameObject("/SigFlags"): NumberObject(3)})
    field = writer._add_object(DictionaryObject({NameObject("/FT"): NameObject("/Sig")}))
    form[NameObject("/Fields")] = ArrayObject([field])
    writer.root_object[NameObject("/AcroForm")] = form
    out = io.BytesIO()
    writer.write(out)
    files = {"a.pdf": out.getvalue(), "b.pdf": out.getvalue()}
    result = act(session, files, "merge")
    assert "Den digitala underskriften i a.pdf, b.pdf gäller inte" in result.notices
    assert "Formulärfält som heter lika i flera filer delar nu innehåll" in result.notices
    assert "b.pdf gäller" not in session.act("pick", file="1", pages="1").notices


# --- names and sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Skärmbild 10.30\u202ffm.pdf", "å" * 125 + ".pdf", ".pdf", "a"])
def test_odd_file_names_give_usable_ones(session: Session, name: str) -> None:
    (made,) = act(session, {name: make_pdf(1)}, "pick", pages="1").files
    assert made.endswith(".pdf") and made.isprintable() and len(made.encode()) <= 255


def test_results_have_names_of_their_own() -> None:
    made: list[str] = []
    for stem in ("a", "A", "a.", "/a/", "", "..."):
        made.append(tool.make_name(stem, made))
    assert made == ["a.pdf", "A-2.pdf", "a-3.pdf", "a-4.pdf", "dokument.pdf", "dokument-2.pdf"]


def test_results_larger_than_the_platform_takes_are_refused(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "RESULT_MAX_BYTES", 500)
    with pytest.raises(ToolUserError, match="Resultatet blir för stort: 1 kB"):
        act(session, TWO, "merge")
    monkeypatch.setattr(tool, "RESULT_MAX_BYTES", 50_000)
    monkeypatch.setattr(tool, "RESULTS_MAX_BYTES", 1_000)
    with pytest.raises(ToolUserError, match="Ta färre sidor åt gången"):
        act(session, TWO, "split", how="varje")


def test_too_many_pages_are_refused(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "PAGES_MAX", 4)
    with pytest.raises(ToolUserError, match="högst 4 tillsammans"):
        session.start(TWO)
    monkeypatch.setattr(tool, "PAGES_MAX", 6)
    with pytest.raises(ToolUserError, match="för många sidor: högst 6"):
        act(session, TWO, "merge", order="egen", own_order="1, 1, 2")


@pytest.mark.timeout(30)
def test_thousands_of_pages_take_seconds(session: Session) -> None:
    files = {f"{n}.pdf": make_pdf(*[100] * 1_000) for n in range(3)}
    result = act(session, files, "merge")
    assert len(PdfReader(io.BytesIO(result.files["sammanslagen.pdf"])).pages) == 3_000


def test_large_images_are_never_unpacked(session: Session) -> None:
    pdf = io.BytesIO()
    writer = PdfWriter()
    page = writer.add_blank_page(100, 100)
    image = writer._add_object(_make_raw_image(9_000))  # of 81 MB when unpacked
    page[NameObject("/Resources")] = DictionaryObject(
        {NameObject("/XObject"): DictionaryObject({NameObject("/I"): image})}
    )
    writer.write(pdf)
    files = {"a.pdf": pdf.getvalue(), "b.pdf": make_pdf(5)}
    session.start(files)
    tracemalloc.start()
    try:
        result = session.act("merge")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert widths(result.files["sammanslagen.pdf"]) == [100, 5]
    assert peak < 20_000_000


def _make_raw_image(side: int) -> Any:
    image = EncodedStreamObject()
    image._data = zlib.compress(bytes(side * side), 9)
    image.update(
        {
            NameObject("/Type"): NameObject("/XObject"),
            NameObject("/Subtype"): NameObject("/Image"),
            NameObject("/Filter"): NameObject("/FlateDecode"),
            NameObject("/Width"): NumberObject(side),
            NameObject("/Height"): NumberObject(side),
            NameObject("/BitsPerComponent"): NumberObject(8),
            NameObject("/ColorSpace"): NameObject("/DeviceGray"),
        }
    )
    return image
