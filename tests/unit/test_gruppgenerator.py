"""Gruppgenerator: rosters of all kinds are read, wishes hold, and every result fits the page."""

import codecs
import csv
import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openpyxl
import pytest
import script_bank
from script_bank import check_catalogue_entry, read_sample
from skriptoteket_toolkit import ToolUserError
from workbooks import make_xlsx, make_zip, read_zip

from app.domain.tools import parse_input_schema

tool = script_bank.load_tool("gruppgenerator")
SAMPLE = read_sample("gruppgenerator")

ROSTER = "Förnamn;Efternamn;Klass\nÅsa;Öberg;7A\nBo;Ek;7A\nMärta;Ås;7B\nŽoë;Lind;7B\n"


def make_roster(count: int, *columns: str) -> str:
    """Make so many pupils; the value of a column called `Nivå:3` is one of three, in turn."""
    kinds = [(title, int(n)) for title, n in (column.split(":") for column in columns)]
    header = ["Namn", *(title for title, _ in kinds)]
    rows = [[f"Elev{i:03} Ek", *(f"{t[0]}{i % n}" for t, n in kinds)] for i in range(1, count + 1)]
    return "\n".join(";".join(row) for row in [header, *rows])


class Session(script_bank.Session):
    """A session with one roster at a time, and what its page says of pupils and groups."""

    def upload(self, content: str | bytes, name: str = "7a.csv") -> None:
        self.start({name: content})

    @property
    def names(self) -> list[str]:
        return [row[1] for row in self.result.table("Klasslistan")[1:]]

    @property
    def groups(self) -> list[list[str]]:
        """The pupils of each group as shown, whichever way the table is turned."""
        header, *rows = self.result.table("Grupper")
        if header[0] == "Grupp":
            return [[cell for cell in row[1:] if cell] for row in rows]
        return [[cell for cell in column if cell] for column in zip(*rows, strict=True)]

    @property
    def everybody(self) -> list[str]:
        return [name for group in self.groups for name in group]


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    return Session(tool, tmp_path, monkeypatch)


def find_group(groups: list[list[str]], name: str) -> int:
    (place,) = [g for g, group in enumerate(groups) for cell in group if cell.startswith(name)]
    return place


# --- the samples, from roster to export -----------------------------------------------------------


def test_sample_csv_in_windows_1252_is_shown_with_what_it_can_be_mixed_by(session: Session) -> None:
    session.upload(SAMPLE["klass-8b.csv"], "klass-8b.csv")
    assert session.result.table("Klasslistan: 27 elever")[0] == ["Nr", "Namn", "Språkval", "Nivå"]
    assert session.result.table("Klasslistan")[1][:2] == [1, "Åke Ahmed"]
    assert session.notices == "" and session.state == {}
    assert session.result.offered == ["divide", "resume"]
    assert session.result.action("divide")["prefill"] == {"mode": "size", "number": 4, "absent": []}


def test_sample_workbook_is_read_under_its_title_and_without_personal_numbers(
    session: Session,
) -> None:
    session.upload(SAMPLE["temadag-ak7.xlsx"], "temadag-ak7.xlsx")
    assert session.result.table("Klasslistan: 51 elever")[0] == ["Nr", "Namn", "Klass", "Simkunnig"]
    assert "," not in "".join(session.names)
    assert "Hoppade över rader som inte ser ut som en elev: ”Antal elever: 51”." in session.notices
    assert "1113" not in json.dumps(session.result.payload)


def test_sample_is_divided_changed_and_exported(session: Session) -> None:
    session.upload(SAMPLE["temadag-ak7.xlsx"], "temadag-ak7.xlsx")
    session.act("divide", mode="count", number=6, mix=["Klass", "Simkunnig"], draw=1)
    assert [len(group) for group in session.groups] == [9, 9, 9, 8, 8, 8]
    for row in session.result.table("Fördelning: Klass")[1:]:
        assert set(row[1:]) <= {4, 5}
    assert {row[2] for row in session.result.table("Fördelning: Simkunnig")[1:]} <= {2, 3}
    session.act("rename", titles="Röd\nBlå\nGrön\nGul\nLila\nVit")
    session.act("save")
    assert session.result.table("Grupper")[0] == ["Röd", "Blå", "Grön", "Gul", "Lila", "Vit"]
    files = session.result.files
    assert files.keys() == {"grupper.xlsx", "grupper.csv", "grupper.html"}
    sheet = openpyxl.load_workbook(io.BytesIO(files["grupper.xlsx"])).active
    rows = [list(row) for row in sheet.iter_rows(values_only=True)]
    assert rows[0] == ["Grupp", "Elev", "Klass", "Simkunnig"] and len(rows) == 52
    text = files["grupper.csv"].decode("utf-8-sig")
    assert files["grupper.csv"].startswith(codecs.BOM_UTF8)
    assert list(csv.reader(io.StringIO(text), delimiter=";")) == rows
    page = files["grupper.html"].decode()
    assert page.count("<section>") == 6 and page.count("<li>") == 51 and "<h2>Röd</h2>" in page
    assert "http" not in page and "<script" not in page


# --- chance ---------------------------------------------------------------------------------------


def test_same_number_list_and_form_give_the_same_groups(session: Session) -> None:
    session.upload(make_roster(30, "Klass:2"))
    form = {"mix": ["Klass"], "together": "Elev001, Elev002", "number": 5}
    session.act("divide", draw=4711, **form)
    first = session.groups
    assert "Lottnummer 4711: samma lista, val" in session.notices
    session.act("divide", draw=4712, **form)
    assert session.groups != first
    session.act("divide", draw=4711, **form)
    assert session.groups == first


def test_groups_do_not_depend_on_the_process(session: Session) -> None:
    session.upload(make_roster(28, "Nivå:3"))
    form = {"mode": "size", "number": 4, "mix": ["Nivå"], "apart": "Elev001, Elev002", "draw": 9}
    action = json.dumps({"action_id": "divide", "input": form, "state": {}})
    code = f"""if True:
        import json, runpy, sys
        sys.path.append({str(script_bank.RUNNER)!r})
        run = runpy.run_path({tool.__file__!r}, run_name="script")["run_tool"]
        print(json.dumps(run("", "")["state"]["groups"]))"""
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "SKRIPTOTEKET_ACTION": action, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    session.act("divide", **form)
    assert {json.dumps(session.state["groups"]) + "\n"} == found


def test_everybody_can_meet_everybody(session: Session) -> None:
    session.upload(make_roster(8))
    mates = Counter()
    for draw in range(1, 401):
        session.act("divide", number=2, draw=draw)
        (pair,) = [group for group in session.groups if "Elev001 Ek" in group]
        mates.update(set(pair) - {"Elev001 Ek"})
    # 400 draws of 7 mates: 57 each, with a standard deviation of 7.
    assert len(mates) == 7 and all(30 <= count <= 90 for count in mates.values())


@pytest.mark.parametrize(
    ("mode", "number", "sizes"),
    [
        ("size", 4, [4, 4, 4, 4, 4, 4, 3]),
        ("size", 5, [6, 6, 5, 5, 5]),
        ("size", 27, [27]),
        ("size", 1, [1] * 27),
        ("count", 4, [7, 7, 7, 6]),
        ("count", 1, [27]),
    ],
)
def test_sizes_of_groups_differ_by_one_at_most(
    session: Session, mode: str, number: int, sizes: list[int]
) -> None:
    session.upload(make_roster(27))
    session.act("divide", mode=mode, number=number)
    assert [len(group) for group in session.groups] == sizes
    assert sorted(session.everybody) == [f"Elev{i:03} Ek" for i in range(1, 28)]


@pytest.mark.parametrize(
    ("mode", "number"), [("size", 0), ("size", 28), ("count", -1), ("count", 28)]
)
def test_numbers_that_give_no_groups_are_refused(session: Session, mode: str, number: int) -> None:
    session.upload(make_roster(27))
    with pytest.raises(ToolUserError, match="mellan 1 och 27"):
        session.act("divide", mode=mode, number=number)


# --- wishes, mixing, absence ----------------------------------------------------------------------


def test_wishes_hold_in_every_draw(session: Session) -> None:
    session.upload(make_roster(26, "Klass:2"))
    wishes = {
        "together": "Elev001, Elev002\nElev003 och Elev004 och Elev005\nelev006 & Elev007 ek",
        "apart": "Elev001, Elev003, Elev006, Elev008\nElev009; Elev010\nElev002/Elev009",
    }
    for draw in range(1, 21):
        session.act("divide", number=4, mix=["Klass"], draw=draw, **wishes)
        place = {f"{i:03}": find_group(session.groups, f"Elev{i:03}") for i in range(1, 27)}
        assert place["001"] == place["002"] and place["006"] == place["007"]
        assert place["003"] == place["004"] == place["005"]
        assert len({place["001"], place["003"], place["006"], place["008"]}) == 4
        assert place["009"] != place["010"] and place["002"] != place["009"]
        assert "gick inte" not in session.notices


def test_tight_wishes_of_a_large_list_hold(session: Session) -> None:
    session.upload(make_roster(120))
    together = "\n".join(f"Elev{i:03}, Elev{i + 60:03}" for i in range(1, 61))
    apart = "\n".join(f"Elev{i:03}, Elev{i + 1:03}" for i in range(1, 60))
    session.act("divide", number=4, together=together, apart=apart, draw=5)
    assert "gick inte" not in session.notices
    place = {name[:7]: g for g, group in enumerate(session.groups) for name in group}
    assert all(place[f"Elev{i:03}"] == place[f"Elev{i + 60:03}"] for i in range(1, 61))


def test_apart_goes_before_together_and_what_fails_is_told(session: Session) -> None:
    session.upload(make_roster(8))
    session.act(
        "divide",
        number=4,
        draw=1,
        together="Elev001, Elev002\nElev003, Elev004, Elev005, Elev006, Elev007",
        apart="Elev002, Elev001\nElev001, Elev003, Elev008",
    )
    assert find_group(session.groups, "Elev001") != find_group(session.groups, "Elev002")
    assert "Håll ihop: det gick inte med Elev001 Ek och Elev002 Ek." in session.notices
    # Five do not fit in a group of four, nor three apart in two groups.
    assert session.notices.count("Håll ihop: det gick inte med") >= 2
    assert session.notices.count("Håll isär: det gick inte med") == 1


def test_names_in_wishes_are_found_as_teachers_write_them(session: Session) -> None:
    session.upload("Namn\nBerg, Anna\nAnna-Karin Ek\nAnna Maria Lind\nBo Ström\nÅsa Ek\nZoë Al\n")
    session.act(
        "divide",
        number=2,
        draw=1,
        together="Berg Anna,  bo\nANNA MARIA och åsa",
        apart="Anna, Bo\nBo, Kalle\nZoë\nEk, Zo",
    )
    assert find_group(session.groups, "Anna Berg") == find_group(session.groups, "Bo")
    assert find_group(session.groups, "Anna Maria") == find_group(session.groups, "Åsa")
    assert "Håll isär: ”Anna” kan vara Anna Berg, Anna Maria Lind. Skriv hela" in session.notices
    assert "Håll isär: ”Kalle” finns inte." in session.notices
    assert "raden ”Zoë” följdes inte" in session.notices
    assert "”Ek” kan vara Anna-Karin Ek, Åsa Ek" in session.notices


def test_absent_pupils_are_left_out_of_groups_and_wishes(session: Session) -> None:
    session.upload(make_roster(9))
    session.act("divide", number=4, absent=["Elev001 Ek"], together="Elev001, Elev002, Elev003")
    assert len(session.everybody) == 8 and "Elev001 Ek" not in session.everybody
    assert find_group(session.groups, "Elev002") == find_group(session.groups, "Elev003")
    assert session.result.action("divide")["prefill"]["absent"] == ["Elev001 Ek"]
    assert "Elev001 Ek" not in session.result.options("exchange", "first")
    everybody = [f"Elev{i:03} Ek" for i in range(1, 10)]
    with pytest.raises(ToolUserError, match="minst två närvarande"):
        session.act("divide", number=1, absent=everybody[1:])


def test_columns_are_spread_as_evenly_as_they_can_be(session: Session) -> None:
    session.upload(make_roster(30, "Klass:3", "Nivå:5"))
    session.act("divide", mode="count", number=6, mix=["Klass", "Nivå"], draw=1)
    assert all(set(row[1:]) <= {1, 2} for row in session.result.table("Fördelning: Klass")[1:])
    assert {sum(row[1:]) for row in session.result.table("Fördelning: Klass")[1:]} == {5}
    assert all(set(row[1:]) == {1} for row in session.result.table("Fördelning: Nivå")[1:])
    assert session.groups[0][0].count(", ") == 2


def test_wishes_may_not_be_endless(session: Session) -> None:
    session.upload(ROSTER)
    with pytest.raises(ToolUserError, match="för många"):
        session.act("divide", number=2, apart="Åsa, Bo\n" * 1000)


def test_many_warnings_are_cut_and_counted(session: Session) -> None:
    session.upload(ROSTER)
    session.act("divide", number=2, apart="\n".join(f"Kalle{i}, Bo" for i in range(60)))
    assert session.notices.count("\n") < 25 and "Och 100 varningar till." in session.notices


# --- the steps after ------------------------------------------------------------------------------


def test_locked_groups_stay_when_the_rest_is_drawn_again(session: Session) -> None:
    session.upload(make_roster(30))
    session.act("divide", number=5)
    before = session.groups
    assert session.result.options("again", "locked") == [f"Grupp {n}" for n in range(1, 7)]
    session.act("again", locked=["1", "4"])
    after = session.groups
    assert (after[1], after[4]) == (before[1], before[4]) and after[0] != before[0]
    assert "är ändrade efter lottningen" in session.notices
    with pytest.raises(ToolUserError, match="Lås färre"):
        session.act("again", locked=["0", "1", "2", "3", "4"])


def test_a_number_drawn_again_gives_its_groups_back(session: Session) -> None:
    session.upload(make_roster(30))
    session.act("divide", number=5, together="Elev001, Elev030")
    first = session.groups
    session.act("again")
    drawn, number = session.groups, session.state["number"]
    assert drawn != first and f"Lottnummer {number}: samma lista" in session.notices
    session.act("divide", draw=number)
    assert session.groups == drawn


def test_two_pupils_change_places(session: Session) -> None:
    session.upload(make_roster(8))
    session.act("divide", number=4)
    a, b = session.groups
    session.act("exchange", first=a[0], second=b[1])
    assert session.groups == [[b[1], *a[1:]], [b[0], a[0], *b[2:]]]
    assert "är ändrade efter lottningen" in session.notices
    with pytest.raises(ToolUserError, match="olika grupper"):
        session.act("exchange", first=session.groups[0][0], second=session.groups[0][1])


def test_a_change_that_breaks_a_wish_says_so(session: Session) -> None:
    session.upload(make_roster(4))
    session.act("divide", number=2, together="Elev001, Elev002")
    assert "gick inte" not in session.notices
    session.act("exchange", first="Elev001 Ek", second="Elev003 Ek")
    assert "Håll ihop: det gick inte med Elev001 Ek och Elev002 Ek." in session.notices


def test_groups_are_renamed_and_keep_their_names_when_drawn_again(session: Session) -> None:
    session.upload(make_roster(6))
    session.act("divide", number=3)
    assert session.result.action("rename")["prefill"] == {"titles": "Grupp 1\nGrupp 2"}
    session.act("rename", titles="  Bävrarna\r\n\r\n" + "Å" * 60)
    assert session.result.table("Grupper")[0] == ["Bävrarna", "Å" * 40]
    session.act("again")
    session.act("divide")
    assert session.result.table("Grupper")[0] == ["Bävrarna", "Å" * 40]
    for titles in ("En", "Lika\nlika", "A\nB\nC"):
        with pytest.raises(ToolUserError, match="Skriv 2 olika namn"):
            session.act("rename", titles=titles)


def test_expired_roster_is_told_and_uploaded_again_without_loss(session: Session) -> None:
    session.upload(ROSTER)
    session.act("divide", number=2, apart="Åsa, Bo")
    before = session.groups
    session.files = {}
    with pytest.raises(ToolUserError, match="finns inte kvar"):
        session.act("save")
    session.upload(ROSTER.replace(";", ","), "samma.csv")
    session.act("resume")
    assert session.groups == before
    assert session.result.action("divide")["prefill"]["apart"] == "Åsa, Bo"


def test_another_roster_is_told_and_keeps_only_the_wishes(session: Session) -> None:
    session.upload(ROSTER)
    session.act("divide", number=2, mix=["Klass"], apart="Åsa, Bo", absent=["Žoë Lind"])
    session.upload(make_roster(12))
    session.act("resume")
    assert "inte densamma som grupperna gjordes av" in session.notices
    assert session.result.offered == ["divide"] and session.result.table("Klasslistan: 12 elever")
    assert session.result.action("divide")["prefill"] == {
        "mode": "size",
        "number": 2,
        "absent": [],
        "apart": "Åsa, Bo",
    }
    session.act("divide", number=3)
    assert len(session.groups) == 4 and "”Åsa” finns inte" in session.notices


def test_resume_without_groups_says_what_to_do(session: Session) -> None:
    session.upload(ROSTER)
    session.act("resume")
    assert "Det finns inga grupper än" in session.notices and session.result.offered == ["divide"]


def test_state_holds_no_names_of_the_roster(session: Session) -> None:
    session.upload(make_roster(40, "Klass:2"))
    session.act(
        "divide", number=4, mix=["Klass"], absent=["Elev003 Ek"], together="Elev001, Elev002"
    )
    text = json.dumps(session.state)
    assert "Elev001, Elev002" in text and text.count("Elev") == 2


def test_exports_hold_no_formulas_and_no_markup(session: Session) -> None:
    names = ["=HYPERLINK(A1) x", "+46 Bo", "-Åsa", "@SUMMA(a)", "<b>Ek</b> & co", "＝x y"]
    session.upload(
        "Namn;=Klass\n" + "\n".join(f"{n};{'=1+1' if i % 2 else '-x'}" for i, n in enumerate(names))
    )
    session.act("divide", number=3)
    session.act("rename", titles='=cmd|x\n<script>"&')
    session.act("save")
    files = session.result.files
    book = openpyxl.load_workbook(io.BytesIO(files["grupper.xlsx"]))
    cells = [cell for row in book.active for cell in row]
    assert {cell.data_type for cell in cells} == {"s"}
    assert all(cell.quotePrefix for cell in cells if cell.value[0] in "=+-@＝")
    assert {cell.value for cell in cells} >= {*names, "=cmd|x", "=Klass", "=1+1"}
    text = files["grupper.csv"].decode("utf-8-sig")
    written = [cell for row in csv.reader(io.StringIO(text), delimiter=";") for cell in row]
    assert not any(cell[0] in "=+-@＝" for cell in written)
    page = files["grupper.html"].decode()
    assert "<script" not in page and "&lt;b&gt;Ek&lt;/b&gt; &amp; co" in page


# --- files of all kinds ---------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("delimiter", [";", "\t", ","])
def test_encodings_and_delimiters_are_told_apart(
    session: Session, encoding: str, delimiter: str
) -> None:
    session.upload(ROSTER.replace(";", delimiter).replace("\n", "\r\n").encode(encoding))
    assert session.names == ["Åsa Öberg", "Bo Ek", "Märta Ås", "Žoë Lind"]
    assert session.result.table("Klasslistan")[0] == ["Nr", "Namn", "Klass"]
    assert session.notices == ""


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("sep=|\r\nNamn|Klass\r\nBo Ek|7A\r\nÅsa Al|7A", ["Bo Ek", "Åsa Al"]),
        ("Namn, Klass\nBo Ek, 7A\nÅsa Al, 7B", ["Bo Ek", "Åsa Al"]),
        ('Nr;Elev;E-post\n1;"Ek; Bo";b@x.se\n2;"Al, Åsa";a@x.se', ["Ek; Bo", "Åsa Al"]),
        ('Nr, Namn\n1, "Ek, Bo"\n2, "Al, Åsa"', ["Bo Ek", "Åsa Al"]),
        ("Klass 7A\n\nEfternamn,Namn\nEk,Bo\nAl,Åsa", ["Bo Ek", "Åsa Al"]),
        ("\ufeffFörnamn:\nBo\nA\u030asa\u200b\nBo", ["Bo", "Åsa", "Bo (2)"]),
        ("Namn\nBo Ek\nBo Ek (2)\nbo ek", ["Bo Ek", "Bo Ek (2)", "bo ek (3)"]),
    ],
)
def test_rosters_of_many_shapes_are_read(session: Session, text: str, names: list[str]) -> None:
    session.upload(text)
    assert session.names == names


def test_names_without_headers_are_read_with_a_remark(session: Session) -> None:
    session.upload("Ek, Bo\nAl, Åsa\nvon Post, Ida\n")
    assert session.names == ["Bo Ek", "Åsa Al", "Ida von Post"]
    assert "Jag hittade inga rubriker" in session.notices
    session.upload("Bo Ek;7A\nÅsa Al;7A\nIda Ek;7B\nPer Al;7B")
    assert session.names[0] == "Bo Ek" and session.result.table("Klasslistan")[0][2] == "(kolumn 2)"


def test_workbook_is_read_from_its_visible_sheet_with_headers(session: Session) -> None:
    rows: list[list[Any]] = [["Namn", "Grupp", "Född"], ["Bo Ek", 1.0, 2011], ["Åsa", 2, 2011]]
    rows += [["Ida", 1, 2012], ["Per", 2, 2012], [None, None, None], ["Siv", 2, 2011]]
    sheets = {"Dold": rows, "Info": [["Hej"]], "7A": rows[:4], "7B": rows}
    session.upload(make_xlsx(sheets, hidden="Dold"), "klass.xlsx")
    assert session.names == ["Bo Ek", "Åsa", "Ida"]
    assert "Jag läste ”7A” och inte 7B." in session.notices
    session.upload(make_xlsx({"7B": rows}), "med fel ändelse.csv")
    assert session.result.table("Klasslistan")[1:3] == [
        [1, "Bo Ek", "1", "2011"],
        [2, "Åsa", "2", "2011"],
    ]


def test_workbook_that_lies_about_its_size_is_read_whole(session: Session) -> None:
    rows = [["Namn", "Klass"], ["Bo", "7A"], ["Åsa", "7B"], ["Ida", "7B"]]
    entries = read_zip(make_xlsx({"A": rows}))
    sheet = "xl/worksheets/sheet1.xml"
    assert b'<dimension ref="A1:B4"' in entries[sheet]
    entries[sheet] = entries[sheet].replace(b'ref="A1:B4"', b'ref="A1:A2"')
    session.upload(make_zip(entries), "a.xlsx")
    assert session.names == ["Bo", "Åsa", "Ida"]


def test_columns_of_personal_data_are_never_shown(session: Session) -> None:
    header = "Namn;Personnummer;E-post;Telefon;Adress;Klass;Klass;Tom\n"
    rows = [
        f"E{i:02} Ek;20110101-000{i % 3};k{i % 2}@x.se;0701234{i % 2};Gata {i};A{i % 2};B{i % 3};"
        for i in range(12)
    ]
    session.upload(header + "\n".join(rows))
    assert session.result.table("Klasslistan")[0] == ["Nr", "Namn", "Klass", "Klass (kolumn 7)"]
    assert session.result.options("divide", "mix") == ["Klass", "Klass (kolumn 7)"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", "a.csv är tom"),
        ("a.csv", b"\r\n ;;\r\n", "a.csv är tom"),
        ("a.csv", "\ufeff".encode(), "a.csv är tom"),
        ("a.csv", b"Namn;Klass\n", "inga elever i a.csv"),
        ("a.csv", b"Namn\nBo", "hittar 1 elever"),
        ("a.csv", b"1;2;3\n4;5;6", "inga elever i a.csv"),
        ("a.csv", make_roster(301).encode(), "hittar 301 elever"),
        ("a.csv", b"%PDF-1.7 x", "ingen tabell"),
        ("a.csv", b"<!doctype html><table>", "ingen tabell"),
        ("a.csv", b"\x89PNG\r\n\x1a\n\0\0\0", "ingen tabell"),
        ("a.csv", b"Namn\nBo\0\0\0Ek", "ingen tabell"),
        ("a.csv", b'Namn\n"' + b"x" * 200_000, "går inte att läsa som tabell"),
        ("a.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "lösenord eller i det äldre"),
        ("a.xlsx", b"PK\x03\x04 trasig", "går inte att öppna som Excel-fil"),
        ("a.xlsx", make_xlsx({"A": [["Namn"], ["Bo"]]})[:-100], "går inte att öppna som Excel-fil"),
        ("a.xlsx", make_xlsx({"A": []}), "a.xlsx är tom"),
        ("a.xlsx", make_zip({"word/document.xml": b"<w/>"}), "går inte att öppna som Excel-fil"),
        ("a.xlsx", make_zip({"xl/worksheets/sheet1.xml": bytes(10_000_001)}), "när den packas upp"),
        ("a.xlsx", make_zip({"xl/styles.xml": bytes(1_000_001)}), "när den packas upp"),
        ("a.csv", b"Namn\n" + b"x" * 5_000_000, "är för stor för en klasslista"),
    ],
)
def test_files_that_are_no_roster_are_explained(
    session: Session, name: str, data: bytes, message: str
) -> None:
    with pytest.raises(ToolUserError, match=message):
        session.upload(data, name)


def test_entities_of_a_workbook_are_not_expanded(session: Session) -> None:
    laughs = (
        '<!DOCTYPE x [<!ENTITY a "'
        + "ha" * 1000
        + '">'
        + "".join(f'<!ENTITY {b} "{f"&{a};" * 30}">' for a, b in zip("abcde", "bcdef", strict=True))
    )
    entries = read_zip(make_xlsx({"A": [["Namn"], ["&f;"], ["Bo Ek"]]}))
    sheet = entries["xl/worksheets/sheet1.xml"].replace(b"&amp;f;", b"&f;")
    assert b"&f;" in sheet
    entries["xl/worksheets/sheet1.xml"] = laughs.encode() + b"]>" + sheet
    started = time.perf_counter()
    with pytest.raises(ToolUserError, match="går inte att öppna som Excel-fil"):
        session.upload(make_zip(entries), "a.xlsx")
    assert time.perf_counter() - started < 5


def test_no_file_and_several_files_are_explained(session: Session) -> None:
    with pytest.raises(ToolUserError, match="Ladda upp en klasslista först"):
        session.start()
    with pytest.raises(ToolUserError, match="i taget"):
        session.start({"a.csv": ROSTER, "b.csv": ROSTER})


# --- caps -----------------------------------------------------------------------------------------


def test_the_largest_list_fits_in_every_step(session: Session) -> None:
    smileys = ["\U0001f600" * 79 + chr(0x4E00 + i) for i in range(300)]
    header = ["Namn", *("\U0001f601" * 60 for _ in range(9))]
    rows = [
        [name, *(chr(0x1F600 + i % 20) * 60 + str(i % 20) for _ in range(9))]
        for i, name in enumerate(smileys)
    ]
    session.upload("\n".join(";".join(row) for row in [header, *rows]))
    mix = session.result.options("divide", "mix")
    assert len(mix) == 8 and len(session.names) == 300
    started = time.perf_counter()
    session.act("divide", mode="count", number=100, mix=mix)
    assert time.perf_counter() - started < 5
    session.act("rename", titles="\n".join("\U0001f600" * 39 + chr(0x4E00 + i) for i in range(100)))
    session.act("again", locked=["3"])
    first, second = (smileys[ids[0]] for ids in session.state["groups"][:2])
    session.act("exchange", first=first, second=second)
    session.act("divide", mode="count", number=2)
    session.act("save")
    with pytest.raises(ToolUserError, match="Det blir 300 grupper"):
        session.act("divide", mode="size", number=1)


@pytest.mark.parametrize("count", [100, 101, 200, 201])
def test_choices_of_pupils_stay_within_what_a_form_shows(session: Session, count: int) -> None:
    session.upload(make_roster(count))
    names = [field["name"] for field in session.result.action("divide")["fields"]]
    assert ("absent" in names) is (count <= 200)
    session.act("divide", mode="count", number=12)
    assert len(session.result.options("exchange", "first")) == (count if count <= 100 else 0)
    a, b = session.groups[0][0], session.groups[1][0]
    session.act("exchange", first=a, second=b)
    assert a in session.groups[1] and b in session.groups[0]
    if count > 100:
        with pytest.raises(ToolUserError, match="Hittar inte båda"):
            session.act("exchange", first="Elev", second=b)


def test_unknown_step_is_refused(session: Session) -> None:
    session.upload(ROSTER)
    with pytest.raises(ToolUserError, match="känner inte till"):
        session.send("x", {})


def test_meta_describes_a_tool_of_the_contract() -> None:
    meta = check_catalogue_entry("gruppgenerator")
    assert meta.slug == "gruppgenerator"
    (field,) = parse_input_schema(meta.input_schema)
    assert field.kind == "file" and (field.min, field.max) == (1, 1)
    assert set(field.accept) == {".csv", ".txt", ".xlsx"}
