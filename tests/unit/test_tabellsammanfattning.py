"""Tabellsammanfattning: tables of all kinds are understood, and every result fits the page."""

import io
import time
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import openpyxl
import pytest
import script_bank
from script_bank import Result, check_catalogue_entry, read_sample
from skriptoteket_toolkit import ToolUserError
from workbooks import make_xlsx, make_zip

from app.domain.tools import parse_input_schema

tool = script_bank.load_tool("tabellsammanfattning")
SAMPLE = read_sample("tabellsammanfattning")

PUPILS = """Elev;Klass;Poäng;Datum;Klar
Åsa;7A;12,5;2026-03-02;Ja
Bo;7A;8;2026-03-02;Nej
Ida;7B;15;2026-03-04;ja
Per;7B;;2026-03-04;Nej
Siv;7B;9,5;;JA
"""


class Session(script_bank.Session):
    """A session with one table at a time, and what its page says of columns and groups."""

    def upload(self, content: str | bytes, name: str = "tabell.csv") -> None:
        self.start({name: content})

    def act(self, action_id: str, **form: Any) -> Result:
        """Take an action; options may be given by what the user reads."""
        for name, wanted in form.items():
            options = self.result.field(action_id, name).get("options", [])
            form[name] = {o["label"]: o["value"] for o in options}.get(wanted, wanted)
        return super().act(action_id, **form)

    @property
    def charts(self) -> dict[str, dict[str, Any]]:
        specs = [output["spec"] for output in self.result.outputs("vega_lite")]
        return {spec["title"]["text"]: spec for spec in specs}

    def chart_rows(self, title: str) -> list[list[Any]]:
        values = self.charts[title]["data"]["values"]
        return [[row["label"], row["value"]] for row in values]

    def table(self, title: str) -> list[list[Any]]:
        """The rows of the table whose title begins so, without its header: no cell is missing."""
        _, *rows = self.result.table(title)
        assert not any(None in row for row in rows)
        return rows

    def facts(self, column: str) -> dict[str, Any]:
        """The statistics of a column, by their titles."""
        (row,) = [row for row in self.table("Kolumner") if row[0] == column]
        return dict(zip(tool.STATISTICS, row, strict=True))

    def kinds(self) -> list[str]:
        return [row[1] for row in self.table("Kolumner")]


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    return Session(tool, tmp_path, monkeypatch)


def read_export(result: Result) -> openpyxl.Workbook:
    return openpyxl.load_workbook(io.BytesIO(result.files["tabellsammanfattning.xlsx"]))


# --- the samples ----------------------------------------------------------------------------------


def test_sample_csv_is_summed_up_with_charts(session: Session) -> None:
    session.upload(SAMPLE["provresultat.csv"], "provresultat.csv")
    assert session.notices == (
        "provresultat.csv: 52 rader och 9 kolumner, rubriker på rad 3. 55 tomma celler (11,8 %), "
        "0 dubblettrader."
    )
    kinds = ["text", "text", "datum", "tal", "tal", "tal", "tal (%)", "ja/nej", "text"]
    assert session.kinds() == kinds
    facts = session.facts("Summa")
    assert (facts["Värden"], facts["Tomma"]) == ("48", "4")
    assert (facts["Minst"], facts["Störst"], facts["Median"]) == ("8,5", "54", "32,25")
    assert session.facts("Klass")["Vanligast"] == "9A (18), 9B (17), 9C (17)"
    assert len(session.table("De första 15 raderna")) == 15
    assert "Elev" not in session.charts and len(session.charts) == 8
    assert sum(value for _, value in session.chart_rows("Andel rätt")) == 48
    assert session.result.offered == ["aggregate", "compare", "filter", "overview", "read", "save"]


def test_sample_workbook_is_grouped_and_exported(session: Session) -> None:
    session.upload(SAMPLE["biblioteket.xlsx"], "biblioteket.xlsx")
    assert "biblioteket.xlsx, ”Lån”: 454 rader och 6 kolumner" in session.notices
    assert session.kinds() == ["datum", "text", "heltal", "heltal", "heltal", "tal"]
    session.act("aggregate", column="Kategori", how="Summa", value="Antal lån")
    rows = session.table("Summa av Antal lån per Kategori")
    assert [row[0] for row in rows] == ["Skönlitteratur", "Serier", "Fakta", "Lättläst"]
    assert session.result.action("aggregate")["prefill"] == {
        "column": "c1",
        "how": "sum",
        "value": "c3",
    }
    session.act("save")
    book = read_export(session.result)
    assert book.sheetnames == ["Kolumner", "Gruppering"]
    cells = [list(row) for row in book["Gruppering"].iter_rows(values_only=True)]
    assert cells[0] == ["Kategori", "Summa av Antal lån"]
    assert [[name, tool.format_number(value)] for name, value in cells[1:]] == rows
    assert book["Kolumner"]["A1"].value == "Kolumn" and book["Kolumner"]["I5"].value > 0
    session.act("read", sheet="Kategorier")
    assert "”Kategorier”: 4 rader och 3 kolumner, rubriker på rad 1" in session.notices
    assert session.state["group"] == {}


# --- what columns hold ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "kind", "low", "high"),
    [
        (["1,5", "-2,25", "+3"], "tal", "-2,25", "3"),
        (
            ["1 234,5", "12\u00a0000", "1\u202f000\u2009000", "\u22125"],
            "tal",
            "-5",
            "1\u00a0000\u00a0000",
        ),
        (["1.5", "2.25", "1e3"], "tal", "1,5", "1000"),
        (["1.234,50", "12.000", "3,25"], "tal", "3,25", "12\u00a0000"),
        (["1,234.50", "12,000", "3.25"], "tal", "3,25", "12\u00a0000"),
        (["12 %", "7,5%", "100 procent", "3 %"], "tal", "3", "100"),
        (["12 %", "7,5%"], "tal (%)", "7,5", "12"),
        (["1 200 kr", "90 kr", "45,50 kr"], "tal (kr)", "45,5", "1200"),
        (["90:-", "1 200:-"], "heltal (:-)", "90", "1200"),
        (["2019", "2020", "2021"], "heltal", "2019", "2021"),
        (
            ["2026-03-01", "2025-12-31T08:30", "2026-01-01 10:00:00"],
            "datum",
            "2025-12-31 08:30:00",
            "2026-03-01",
        ),
        (["20260301", "20251231"], "datum", "2025-12-31", "2026-03-01"),
        (["1/3 2026", "31/12 2025"], "datum", "2025-12-31", "2026-03-01"),
        (["1/3-26", "31/12-25"], "datum", "2025-12-31", "2026-03-01"),
        (["13.2.2026", "01.03.2026"], "datum", "2026-02-13", "2026-03-01"),
        (["den 3 mars 2026", "24 dec. 2025", "1 Maj 2026"], "datum", "2025-12-24", "2026-05-01"),
        (["2026-03", "2025-11"], "datum", "2025-11-01", "2026-03-01"),
        (["2026-03-01", "3 mars 2026", "5/3/2026"], "datum", "2026-03-01", "2026-03-05"),
        (["Ja", "nej", "JA"], "ja/nej", "", ""),
        (["sant", "falskt", "-"], "ja/nej", "", ""),
        (["NA", "SA", "NA"], "text", "", ""),
        (["070-123 45 67", "08-12 34 56"], "text", "", ""),
        (["0701234567", "0812345678"], "text", "", ""),
        (["0701", "0802", "0701"], "text", "", ""),
        (["2026-03-01"] * 9 + ["9999-12-31"], "datum", "2026-03-01", "2026-03-01"),
        (["199001011234", "198502023456"], "text", "", ""),
        (["20110101-1234", "20120202-2345"], "text", "", ""),
        (["7A", "8B", "9"], "text", "", ""),
        (["12:30", "13:45"], "text", "", ""),
        (["v. 12", "v. 13"], "text", "", ""),
        (["..", "-", "#SAKNAS!"], "tom", "", ""),
        (["1" * 400, "2"], "text", "", ""),
    ],
)
def test_what_a_column_holds_is_found_out(
    session: Session, cells: list[str], kind: str, low: str, high: str
) -> None:
    session.upload("Nr\tX\n" + "\n".join(f"a{i}\t{cell}" for i, cell in enumerate(cells)))
    facts = session.facts("X")
    assert (facts["Typ"], facts["Minst"], facts["Störst"]) == (kind, low, high)


def test_statistics_are_those_of_the_numbers(session: Session) -> None:
    session.upload("X;Y\n" + "\n".join(f"{n};x" for n in ("1,0", 2, 3, 4, "", "-", 10)))
    assert list(session.facts("X").values()) == [
        "X", "heltal", "5", "2", "0", "5", "1", "10", "4", "3", "3,54", "2", "4", "",
    ]  # fmt: skip


def test_mixed_columns_count_what_they_could_not_read(session: Session) -> None:
    cells = ["1", "2", "3"] * 10 + ["ungefär 4", "", "-"]
    session.upload("A;B\n" + "\n".join(f"x;{cell}" for cell in cells))
    facts = session.facts("B")
    found = [facts[name] for name in ("Typ", "Värden", "Tomma", "Ej tolkade")]
    assert found == ["heltal", "30", "2", "1"]
    session.upload("A;B\n" + "\n".join(f"x;{cell}" for cell in ["1", "2", "hej", "5 st"]))
    assert session.facts("B")["Typ"] == "text"


def test_cells_of_workbooks_keep_their_types(session: Session) -> None:
    morning, midnight = map(datetime.fromisoformat, ("2026-03-01 08:30", "2026-03-02"))
    rows = [
        ["Tal", "Datum", "Tid", "Sant", "Summa", "Tom"],
        [1 / 3, date(2026, 3, 1), morning, True, "=A2*2", None],
        [1234567.25, date(2025, 3, 1), midnight, False, "=A3*2", None],
        [1e-7, None, None, None, None, None],
    ]
    session.upload(make_xlsx({"A": rows}), "a.xlsx")
    assert session.kinds() == ["tal", "datum", "datum", "ja/nej", "tom", "tom"]
    assert session.facts("Tal")["Störst"] == "1\u00a0234\u00a0567,25"
    first = session.table("De första 3 raderna")[0]
    assert first == ["0,333333333333333", "2026-03-01", "2026-03-01 08:30:00", "Ja", "", ""]


def test_titles_are_made_up_and_made_unique(session: Session) -> None:
    session.upload("Namn;;Namn;namn;Tom;\n1;2;3;x;;\n4;5;6;y;;")
    titles = [row[0] for row in session.table("Kolumner")]
    assert titles == ["Namn", "Kolumn 2", "Namn (2)", "namn (3)", "Tom"]
    assert session.facts("Tom")["Typ"] == "tom"
    assert "Tom" not in session.result.options("aggregate", "column")


@pytest.mark.parametrize(
    ("text", "header", "titles"),
    [
        (
            "Kommun;2024;2025\nSolna;84187;85450\nNacka;110 000;111 000",
            1,
            ["Kommun", "2024", "2025"],
        ),
        ("Elev;2026-03-01;2026-03-08\nBo;1;0\nÅsa;1;1", 1, ["Elev", "2026-03-01", "2026-03-08"]),
        ("Bo;2011;7A\nÅsa;2012;7B\nIda;2011;7A", 0, ["Kolumn 1", "Kolumn 2", "Kolumn 3"]),
        ("1;2\n3;4", 0, ["Kolumn 1", "Kolumn 2"]),
        ("Rapport\n\nUttag 2026-03-01\n\nA;B;C\n1;2;3\n4;;6", 5, ["A", "B", "C"]),
        ("Poäng\n12,5\n8,5\n9", 1, ["Poäng"]),
        ("Pris, kr;Antal\n1,5;2\n2,5;3", 1, ["Pris, kr", "Antal"]),
        ("A|B\n1,5|2\n2,5|3", 1, ["A", "B"]),
        ("Kommentar\nBra, men kort\nJa, gärna\nNej\nBra, bra, bra", 1, ["Kommentar"]),
        (
            "Folkmängd efter år\n\nRegion,År,Antal\nSolna,2024,1\nNacka,2024,2",
            3,
            ["Region", "År", "Antal"],
        ),
        ('sep=#\nA#B\n1#"2#3"', 1, ["A", "B"]),
    ],
)
def test_header_row_and_delimiter_are_found(
    session: Session, text: str, header: int, titles: list[str]
) -> None:
    session.upload(text)
    told = f"rubriker på rad {header}" if header else "utan rubriker"
    assert told in session.notices
    assert [row[0] for row in session.table("Kolumner")] == titles


def test_header_row_can_be_corrected(session: Session) -> None:
    session.upload("Namn;Klass\nBo;7A\nÅsa;7B")
    assert [row[0] for row in session.table("Kolumner")] == ["Namn", "Klass"]
    session.act("read", header=0)
    assert "3 rader och 2 kolumner, utan rubriker" in session.notices
    session.act("read", header=2)
    assert [row[0] for row in session.table("Kolumner")] == ["Bo", "7A"]
    for header in (-1, 9):
        with pytest.raises(ToolUserError, match="mellan 1 och 3"):
            session.act("read", header=header)
    with pytest.raises(ToolUserError, match="inga rader under"):
        session.act("read", header=3)
    session.act("read")
    assert "rubriker på rad 1" in session.notices


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("delimiter", [";", "\t", ","])
def test_encodings_and_delimiters_are_told_apart(
    session: Session, encoding: str, delimiter: str
) -> None:
    text = PUPILS.replace(",", ".").replace(";", delimiter).replace("\n", "\r\n")
    session.upload(text.encode(encoding))
    assert session.kinds() == ["text", "text", "tal", "datum", "ja/nej"]
    assert session.table("De första")[0][0] == "Åsa"


def test_duplicates_and_empty_cells_are_counted(session: Session) -> None:
    session.upload("A;B\n1;x\n1;x\n;-\n\n2;y\n1;x\n")
    assert "5 rader och 2 kolumner" in session.notices
    assert "2 tomma celler (20 %), 2 dubblettrader" in session.notices


def test_hidden_and_empty_sheets_are_passed_over(session: Session) -> None:
    sheets: dict[str, list[list[Any]]] = {"Dold": [["A"], [1]], "Tom": [], "Data": [["B"], [2]]}
    session.upload(make_xlsx(sheets, hidden="Dold"), "fel ändelse.csv")
    assert "”Data”: 1 rader" in session.notices
    assert session.result.options("read", "sheet") == ["Tom", "Data"]
    with pytest.raises(ToolUserError, match="Bladet ”Tom” i fel ändelse"):
        session.act("read", sheet="Tom")


# --- grouping -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "rows"),
    [
        ("Antal", [["7B", "2"], ["7A", "2"]]),
        ("Summa", [["7B", "24,5"], ["7A", "20,5"]]),
        ("Medelvärde", [["7B", "12,25"], ["7A", "10,25"]]),
        ("Median", [["7B", "12,25"], ["7A", "10,25"]]),
        ("Minsta", [["7B", "9,5"], ["7A", "8"]]),
        ("Största", [["7B", "15"], ["7A", "12,5"]]),
    ],
)
def test_a_number_is_summed_up_per_category(
    session: Session, how: str, rows: list[list[str]]
) -> None:
    session.upload(PUPILS)
    session.act("aggregate", column="Klass", how=how, value="Poäng")
    found = session.table(f"{how} av Poäng per Klass")
    assert sorted(found) == sorted(rows)
    assert "1 rader utan värde är inte med" in session.notices
    (chart,) = session.charts.values()
    assert chart["mark"] == {"type": "bar"} and chart["encoding"]["x"]["title"] == f"{how} av Poäng"


def test_rows_are_counted_per_day_with_zeros_between(session: Session) -> None:
    session.upload(PUPILS)
    session.act("aggregate", column="Datum", how="Antal")
    assert session.table("Antal rader per Datum") == [
        ["2026-03-02", "2"],
        ["2026-03-03", "0"],
        ["2026-03-04", "2"],
    ]
    (chart,) = session.charts.values()
    assert chart["encoding"]["x"]["type"] == "temporal" and chart["mark"]["type"] == "line"
    assert chart["data"]["values"][0]["start"] == "2026-03-02T00:00:00"
    session.act("aggregate", column="Datum", how="Medelvärde", value="Poäng")
    assert [row[0] for row in session.table("Medelvärde")] == ["2026-03-02", "2026-03-04"]


@pytest.mark.parametrize(
    ("days", "label", "count"),
    [(30, "2025-12-29", 30), (300, "2026 v. 01", 43), (3000, "2025-12", 100), (30_000, "2025", 84)],
)
def test_periods_grow_with_the_time_they_cover(
    session: Session, days: int, label: str, count: int
) -> None:
    dates = [date(2025, 12, 29) + timedelta(n) for n in range(days)]
    session.upload("D;X\n" + "\n".join(f"{day};1" for day in dates))
    session.act("aggregate", column="D", how="Summa", value="X")
    rows = session.table("Summa")
    assert rows[0][0] == label and len(rows) == count


def test_numbers_are_grouped_as_they_are_or_in_intervals(session: Session) -> None:
    rows = [f"{n % 7};{n};{n / 10:.1f}".replace(".", ",") for n in range(100)]
    session.upload("A;B;C\n" + "\n".join(rows))
    session.act("aggregate", column="A", how="Antal")
    assert session.table("Antal rader per A")[0] == ["0", "15"]
    session.act("aggregate", column="B", how="Antal")
    assert session.table("Antal rader per B")[:2] == [["0 till 9", "10"], ["10 till 19", "10"]]
    session.act("aggregate", column="C", how="Antal")
    assert session.table("Antal rader per C")[:2] == [["0 till 1", "10"], ["1 till 2", "10"]]
    ((chart),) = session.charts.values()
    assert chart["encoding"]["x"]["bin"] == {"binned": True}
    assert chart["data"]["values"][9] == {"label": "9 till 10", "start": 9, "end": 10, "value": 10}


def test_many_categories_are_cut_in_the_chart_and_told(session: Session) -> None:
    session.upload("Ort;X\n" + "\n".join(f"Ort {n % 600};1" for n in range(1200)))
    assert len(session.chart_rows("Ort (de 20 största av 600)")) == 20
    session.act("aggregate", column="Ort", how="Antal")
    assert len(session.table("Antal rader per Ort")) == 500
    assert "600 grupper. Tabellen visar de första 500" in session.notices
    session.act("save")
    book = read_export(session.result)
    assert book["Gruppering"].max_row == 601


def test_long_categories_that_begin_alike_stay_apart(session: Session) -> None:
    session.upload("X;Y\n" + "".join(f"{'lång ' * 20}{n % 3};1\n" for n in range(12)))
    rows = session.chart_rows("X")
    assert [value for _, value in rows] == [4, 4, 4] and len({label for label, _ in rows}) == 3


def test_grouping_without_a_number_asks_for_one(session: Session) -> None:
    session.upload(PUPILS)
    with pytest.raises(ToolUserError, match="Välj vilken kolumn med tal som medelvärde"):
        session.act("aggregate", column="Klass", how="Medelvärde")
    session.upload("A;B\nx;y\nz;y")
    assert session.result.options("aggregate", "how") == ["Antal"]
    assert "compare" not in session.result.offered


# --- scatter and filter ---------------------------------------------------------------------------


def test_two_columns_are_compared_by_points(session: Session) -> None:
    session.upload(
        "Nr;A;B;K\n" + "\n".join(f"x{n};{n},5;{-2 * n};k{n % 3}" for n in range(9)) + "\ny;;3;k1"
    )
    session.act("compare", x="A", y="B", colour="K")
    chart = session.charts["B mot A"]
    assert chart["data"]["values"][1] == {"x": 1.5, "y": -2, "colour": "k1"}
    assert len(chart["data"]["values"]) == 9
    assert chart["encoding"]["x"]["scale"] == {"zero": False}
    assert "9 rader har tal i båda kolumnerna. Korrelationen är -1." in session.notices
    with pytest.raises(ToolUserError, match="två olika kolumner"):
        session.act("compare", x="A", y="A")


def test_many_points_are_sampled_the_same_each_time(session: Session) -> None:
    session.upload("A;B\n" + "\n".join(f"{n};{n * n % 97}" for n in range(5000)))
    session.act("compare")
    first = session.charts["B mot A"]["data"]["values"]
    assert len(first) == 1500 and "visar 1500 av dem" in session.notices
    session.act("compare")
    assert session.charts["B mot A"]["data"]["values"] == first


@pytest.mark.parametrize(
    ("column", "test", "value", "count"),
    [
        ("Klass", "is", "7a", 2),
        ("Klass", "not", "7A", 3),
        ("Elev", "contains", "S", 2),
        ("Poäng", "over", "9,5", 2),
        ("Poäng", "under", "12.5", 2),
        ("Poäng", "is", "8,0", 1),
        ("Poäng", "is", "", 1),
        ("Datum", "over", "2/3 2026", 2),
        ("Datum", "is", "4 mars 2026", 2),
        ("Klar", "is", "Ja", 3),
    ],
)
def test_a_filter_holds_until_it_is_taken_away(
    session: Session, column: str, test: str, value: str, count: int
) -> None:
    session.upload(PUPILS)
    session.act("filter", column=column, test=test, value=value)
    assert f"Filtrerat: bara de {count} av 5 rader där {column}" in session.notices
    session.act("overview")
    assert f"tabell.csv: {count} rader" in session.notices
    session.act("filter", column="")
    assert "tabell.csv: 5 rader" in session.notices and "Filtrerat" not in session.notices


def test_a_filter_that_leaves_nothing_is_refused_and_forgotten(session: Session) -> None:
    session.upload(PUPILS)
    with pytest.raises(ToolUserError, match="Inga rader passar: Klass är ”9Z”"):
        session.act("filter", column="Klass", test="is", value="9Z")
    with pytest.raises(ToolUserError, match="kräver en kolumn med tal eller datum"):
        session.act("filter", column="Klass", test="over", value="7")
    with pytest.raises(ToolUserError, match="kräver en kolumn med tal eller datum"):
        session.act("filter", column="Poäng", test="over", value="många")
    session.act("overview")
    assert "tabell.csv: 5 rader" in session.notices


def test_columns_that_a_filter_empties_are_told(session: Session) -> None:
    session.upload("A;B;C\n1;x;Ja\n2;;\n1;y;Nej")
    session.act("filter", column="A", test="is", value="2")
    assert [session.facts(name)["Vanligast"] for name in "BC"] == ["", ""]
    session.upload(PUPILS)
    session.act("filter", column="Elev", test="is", value="Siv")
    with pytest.raises(ToolUserError, match="inga värden att räkna på"):
        session.act("aggregate", column="Datum", how="Antal")
    session.act("filter", column="Elev", test="is", value="Per")
    assert session.facts("Poäng")["Medel"] == ""
    with pytest.raises(ToolUserError, match="inga värden att räkna på"):
        session.act("aggregate", column="Klass", how="Summa", value="Poäng")
    with pytest.raises(ToolUserError, match="inga värden att räkna på"):
        session.act("aggregate", column="Poäng", how="Antal")


# --- charts ---------------------------------------------------------------------------------------


def test_names_of_columns_never_become_fields_or_addresses(session: Session) -> None:
    hostile = [
        "a.b[0]",
        "x\"y'z",
        "URL(//x.se)",
        "href",
        "datum.x\\n",
        "<b>1</b>",
        "$schema",
        "url",
    ]
    lines = [";".join(f"v{(n + i) % 3}" for i in range(8)) for n in range(12)]
    session.upload(
        ";".join(name.replace('"', '""').join('""') for name in hostile) + "\n" + "\n".join(lines)
    )
    assert len(session.charts) == 8 and "a.b[0]" in session.charts
    fields = {
        channel["field"]
        for spec in session.charts.values()
        for channel in spec["encoding"].values()
        if isinstance(channel, dict)
    }
    assert fields == {"label", "value"}
    session.act("aggregate", column=session.result.options("aggregate", "column")[2], how="Antal")
    (chart,) = session.charts.values()
    assert chart["encoding"]["y"]["title"] == "url (//x.se)"


def test_charts_speak_swedish_and_hold_no_raw_rows(session: Session) -> None:
    session.upload("A;B\n" + "\n".join(f"{n % 50};{n},25" for n in range(3000)))
    for spec in session.charts.values():
        assert len(spec["data"]["values"]) <= 40
        assert spec["config"]["locale"]["number"]["decimal"] == ","
        assert spec["config"]["locale"]["time"]["months"][4] == "maj"
        assert spec["encoding"]["y"]["title"] == "Antal rader"


def test_row_numbers_names_and_constants_are_not_drawn(session: Session) -> None:
    rows = [f"{n};namn {n};x;{n * n};{'ab'[n % 2]}" for n in range(40)]
    session.upload("Nr;Namn;Lika;Kvadrat;Sort\n" + "\n".join(rows))
    assert list(session.charts) == ["Kvadrat", "Sort"]


# --- files of all kinds ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", "a.csv är tomt"),
        ("a.csv", b"\r\n;;;\r\n;;;\r\n", "a.csv är tomt"),
        ("a.csv", "\ufeff".encode(), "a.csv är tomt"),
        ("a.csv", b"Namn;Klass\n", "har rubriker men inga rader"),
        ("a.csv", b"%PDF-1.7 x", "ingen tabell"),
        ("a.csv", b"<!doctype html><table>", "ingen tabell"),
        ("a.csv", b'{"a": 1}', "ingen tabell"),
        ("a.csv", b"\x89PNG\r\n\x1a\n\0\0\0", "ingen tabell"),
        ("a.csv", b"A;B\n1\0\0\0;2", "ingen tabell"),
        ("a.csv", b'A;B\n1;"' + b"x" * 200_000, "går inte att läsa som tabell"),
        ("a.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "lösenord eller i det äldre"),
        ("a.xlsx", b"PK\x03\x04 trasig", "går inte att öppna som Excel-fil"),
        ("a.xlsx", make_xlsx({"A": [["A"], [1]]})[:-100], "går inte att öppna som Excel-fil"),
        ("a.xlsx", make_xlsx({"A": []}), "Bladet ”A” i a.xlsx är tomt"),
        ("a.xlsx", make_zip({"word/document.xml": b"<w/>"}), "går inte att öppna som Excel-fil"),
        ("a.xlsx", make_zip({"xl/styles.xml": bytes(16_000_000)}), "när den packas upp"),
        ("a.csv", b"A;B\n" + b"1;2\n" * 5_000_000, "är för stor"),
    ],
)
def test_files_that_are_no_table_are_explained(
    session: Session, name: str, data: bytes, message: str
) -> None:
    with pytest.raises(ToolUserError, match=message):
        session.upload(data, name)


def test_a_workbook_is_weighed_before_it_is_unpacked(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = make_zip({"xl/workbook.xml": b"<x/>", "xl/worksheets/sheet1.xml": bytes(2_000_000)})
    monkeypatch.setattr(tool, "UNPACKED_MAX_BYTES", 1_900_000)
    monkeypatch.setattr(openpyxl, "load_workbook", lambda *args, **kwargs: pytest.fail("unpacked"))
    with pytest.raises(ToolUserError, match="när den packas upp"):
        session.upload(bomb, "a.xlsx")


def test_no_file_several_files_and_expired_files_are_explained(session: Session) -> None:
    with pytest.raises(ToolUserError, match="Ladda upp en tabell först"):
        session.start()
    session.upload(PUPILS)
    session.files = {}
    with pytest.raises(ToolUserError, match="Filen finns inte kvar"):
        session.act("overview")
    session.files = {"a.csv": PUPILS, "b.csv": PUPILS}
    with pytest.raises(ToolUserError, match="i taget"):
        session.act("overview")


def test_a_new_file_forgets_the_choices_for_the_old_one(session: Session) -> None:
    session.upload(PUPILS)
    session.act("filter", column="Klass", test="is", value="7A")
    session.act("aggregate", column="Klass", how="Antal")
    session.upload("X\n1\n2")
    assert session.state == {"sheet": "", "header": None, "filter": {}, "group": {}}
    assert "2 rader och 1 kolumner" in session.notices


def test_export_holds_no_formulas(session: Session) -> None:
    session.upload(
        "=1+1;B\n" + "\n".join(f"{text};1" for text in ["=cmd|x", "@x", "+1+1", "-a"] * 2)
    )
    session.act("aggregate", column="=1+1", how="Antal")
    session.act("save")
    book = read_export(session.result)
    cells = [cell for sheet in book for row in sheet for cell in row if cell.value is not None]
    assert "f" not in {cell.data_type for cell in cells}
    texts = {cell.value: cell.quotePrefix for cell in cells if cell.data_type == "s"}
    assert {"=1+1", "=cmd|x", "@x", "+1+1", "-a"} <= texts.keys()
    assert all(quoted for text, quoted in texts.items() if text and text[0] in "=@+-")


# --- caps -----------------------------------------------------------------------------------------


def test_a_hundred_thousand_rows_take_seconds(session: Session) -> None:
    day = date(2020, 1, 1)
    rows = [
        f"{n};{day + timedelta(n % 1900)};{n % 9}A;{n % 101};{n % 977},5;{'Ja' if n % 3 else 'Nej'}"
        for n in range(100_000)
    ]
    started = time.perf_counter()
    session.upload("Nr;Datum;Klass;Poäng;Pris;Klar\n" + "\n".join(rows))
    session.act("aggregate", column="Datum", how="Medelvärde", value="Pris")
    assert time.perf_counter() - started < 10
    assert len(session.table("Medelvärde av Pris per Datum")) == 63


def test_the_widest_table_fits_and_says_what_is_left_out(session: Session) -> None:
    header = ["\U0001f600" * 70 + str(n) for n in range(230)]
    rows = [
        ["\U0001f601" * 90 + str((n * i) % 7) if i % 2 else f"{n * i},5" for i in range(230)]
        for n in range(30)
    ]
    session.upload("\n".join(";".join(row) for row in [header, *rows]))
    assert "bara de första 200 kolumnerna är med" in session.notices
    assert "De första 8 av " in session.notices
    assert "Av raderna visas de första 25 kolumnerna." in session.notices
    assert "de första 100 kolumnerna av varje slag" in session.notices
    assert len(session.result.options("aggregate", "column")) == 100
    assert len(session.table("Kolumner")) == 200
    columns = session.result.options("aggregate", "column")
    session.act("aggregate", column=columns[1], how="Medelvärde", value=columns[2])
    session.act("filter", column=columns[1], test="contains", value="\U0001f601")
    session.act("compare", colour=columns[1])
    session.act("save")


def test_too_many_rows_are_cut_and_told(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "ROWS_MAX", 100)
    session.upload("A;B\n" + "1;2\n" * 300)
    assert "bara de första 100 raderna är med" in session.notices
    monkeypatch.setattr(tool, "CELLS_MAX", 50)
    session.upload(make_xlsx({"A": [["A", "B"], *([[1, 2]] * 300)]}), "a.xlsx")
    assert "bara de första 25 raderna är med" in session.notices


def test_odd_numbers_and_characters_pass(session: Session) -> None:
    cells = ["1e300", "-1e99", "1e-300", "0", "\U0001f600", "\u200b", "\x07", "9007199254740993"]
    session.upload("Text\tTal\n" + "\n".join(f"{c}\t{c}" for c in cells[:4] * 9 + cells))
    session.act("aggregate", column="Tal", how="Antal")
    session.act("aggregate", column="Text", how="Antal")
    session.act("save")


def test_unknown_steps_and_columns_are_refused(session: Session) -> None:
    session.upload(PUPILS)
    with pytest.raises(ToolUserError, match="känner inte till"):
        session.send("x", {})
    with pytest.raises(ToolUserError, match="finns inte längre"):
        session.send("aggregate", {"column": "c99", "how": "count"})


def test_meta_describes_a_tool_of_the_contract() -> None:
    meta = check_catalogue_entry("tabellsammanfattning")
    assert meta.slug == "tabellsammanfattning"
    (field,) = parse_input_schema(meta.input_schema)
    assert field.kind == "file" and (field.min, field.max) == (1, 1)
    assert {".csv", ".xlsx"} <= set(field.accept)
