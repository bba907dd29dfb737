"""Klasslista: rosters of all kinds are read, groups are fair and keep the rules, memory lasts."""

import codecs
import csv
import io
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import openpyxl
import pytest
import script_bank
from skriptoteket_toolkit import ToolUserError
from workbooks import make_xlsx, make_zip, read_zip

from app.domain.policy import CURATED_POLICY
from app.domain.tools import is_slug

app = script_bank.load_tool("klasslista")
SAMPLE = script_bank.read_sample("klasslista")

Rows = list[list[str]]
ROSTER: Rows = [
    ["Förnamn", "Efternamn", "Klass"],
    ["Åsa", "Öberg", "7A"],
    ["Bo", "Ek", "7A"],
    ["Märta", "Ås", "7A"],
]


def make_csv(rows: Iterable[list[str]], delimiter: str = ";") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue()


def make_roster(count: int) -> str:
    return make_csv([["Namn"], *([f"Elev{number:03} Ek"] for number in range(1, count + 1))])


class Session(script_bank.Session):
    """A session with one roster at a time, and what its page says of pupils and groups."""

    def upload(self, content: str | bytes, name: str = "7a.csv") -> None:
        self.start({name: content})

    @property
    def text(self) -> str:
        return "\n".join(output["markdown"] for output in self.result.outputs("markdown"))

    @property
    def rows(self) -> list[dict[str, Any]]:
        (table,) = self.result.outputs("table")
        return list(table["rows"])

    @property
    def names(self) -> list[str]:
        return [row["name"] for row in self.rows]

    @property
    def groups(self) -> list[set[str]]:
        """The groups in the table shown, which has them as rows or as columns."""
        (table,) = self.result.outputs("table")
        keys = [column["key"] for column in table["columns"]]
        if keys[0] == "group":
            return [{row[key] for key in keys[1:] if row.get(key)} for row in table["rows"]]
        return [{row[key] for row in table["rows"] if row.get(key)} for key in keys]

    def divide(self, **values: Any) -> list[set[str]]:
        self.act("assign_groups", **values)
        return self.groups

    def draw(self, **values: Any) -> str:
        self.act("draw_pupil", **values)
        return self.text.splitlines()[0].removeprefix("# ").replace("\\", "")


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    state: dict[str, Any] = {"version": 1, "seed": 7, "turn": 0, "names": []}
    state |= {"divisions": [], "seatings": [], "drawn": [], "absent": []}
    state |= {"absent_on": "", "form": {}}
    return Session(app, tmp_path, monkeypatch, CURATED_POLICY, state)


def pairs_of(groups: list[set[str]]) -> list[tuple[str, ...]]:
    return [pair for group in groups for pair in combinations(sorted(group), 2)]


def count_repeats(divisions: list[list[set[str]]]) -> int:
    met = Counter(pair for groups in divisions for pair in pairs_of(groups))
    return sum(count - 1 for count in met.values())


# --- the entry and the sample ---------------------------------------------------------------------


def test_entry_is_a_tool_of_the_catalogue() -> None:
    entry = script_bank.get_app("klasslista")
    assert entry.app_id == entry.slug == "klasslista" and is_slug(entry.slug)
    (field,) = entry.input_schema
    assert (field.kind, field.accept, field.min, field.max) == ("file", (".csv", ".xlsx"), 1, 1)


def test_sample_is_read_and_all_steps_are_offered_in_their_order(session: Session) -> None:
    session.upload(SAMPLE["klass-7a.csv"])
    assert len(session.names) == 24 and "Örjan Söderlund" in session.names
    assert session.notices == "" and "**24 elever**" in session.text
    assert [action["label"] for action in session.result.payload["next_actions"]] == [
        "Gör grupper",
        "Placering",
        "Slumpa en elev",
        "Exportera",
        "Glöm tidigare grupper",
    ]


# --- reading rosters ------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [";", ",", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le"])
def test_all_encodings_and_delimiters_are_read(
    session: Session, encoding: str, delimiter: str
) -> None:
    session.upload(make_csv(ROSTER, delimiter).encode(encoding))
    assert session.names == ["Åsa Öberg", "Bo Ek", "Märta Ås"]
    assert [row["klass"] for row in session.rows] == ["7A"] * 3
    assert session.notices == ""


@pytest.mark.parametrize(
    "text",
    [
        "Efternamn;Förnamn\nÖberg;Åsa\nEk;Bo\n",
        "sep=;\r\nFörnamn;Efternamn\r\nÅsa;Öberg\r\nBo;Ek\r\n",
        "\ufeffsep=|\nFörnamn|Efternamn\nÅsa|Öberg\nBo|Ek\n",
        "Namn\nÖberg, Åsa\nEk, Bo\n",
        "Namn\nÅsa Öberg\nBo Ek",
        "Efternamn, Förnamn\nÖberg, Åsa\nEk, Bo\n",
        '"Efternamn, Förnamn",Klass\n"Öberg, Åsa",7A\n"Ek, Bo",7A\n',
        "Namn;Efternamn\nÅsa;Öberg\nBo;Ek\n",
        "Namn;Efternamn\nÅsa Öberg;Öberg\nBo Ek;Ek\n",
        "Personnr;ELEV:;E-post\n20110203-1234;Åsa Öberg;a@x.se\n20110303-1234;Bo Ek;b@x.se\n",
        "Klasslista 7A;;\nUtskriven 2025-08-20;;\n\n;Förnamn;Efternamn\n1;Åsa;Öberg\n2;Bo;Ek\n",
        "\n\nFörnamn,Efternamn,\n\nÅsa,Öberg,\n , ,\nBo,Ek,\n,,\n",
        'Förnamn, Efternamn\n"Åsa", "Öberg"\n"Bo", "Ek"\n',
        "Förnamn;Efternamn\n  Åsa\u00a0 ;\u200bÖberg\nBo;Ek\n",
    ],
)
def test_many_forms_of_rosters_give_the_same_pupils(session: Session, text: str) -> None:
    session.upload(text)
    assert session.names == ["Åsa Öberg", "Bo Ek"]
    assert session.notices == ""


@pytest.mark.parametrize(
    ("text", "remark"),
    [
        ("Åsa Öberg\nBo Ek\nMärta Ås\n", "kolumn 1 som elevernas namn"),
        ("Öberg, Åsa\nEk, Bo\nÅs, Märta\n", "kolumn 1 som elevernas namn"),
        ("Åsa;Öberg\nBo;Ek\nMärta;Ås\n", "kolumn 1 som förnamn och kolumn 2 som efternamn"),
        ("7A;Åsa Öberg\n7A;Bo Ek\n7A;Märta Ås\n", "kolumn 2 som elevernas namn"),
    ],
)
def test_without_headers_the_names_are_guessed_and_the_guess_is_told(
    session: Session, text: str, remark: str
) -> None:
    session.upload(text)
    assert session.names == ["Åsa Öberg", "Bo Ek", "Märta Ås"]
    assert remark in session.notices


def test_odd_rows_are_named_and_left_out(session: Session) -> None:
    text = "Förnamn;Efternamn;Klass\nÅsa;Öberg;7A\n;;7A\n---;;\nBo;;7A\nEva;Ek;7A\nIda;Ek;7A\n"
    session.upload(f"{text}{'x' * 90};Ek;7A\nAntal: 4;;\nLinh;Ek;7A;extra\n")
    assert session.names == ["Åsa Öberg", "Bo", "Eva Ek", "Ida Ek", "Linh Ek"]
    assert "Hoppade över" in session.notices
    for row in ("3 (”7A”)", "4 (”---”)", "8 (”xxx", "9 (”Antal: 4”)"):
        assert row in session.notices
    assert "fler kolumner än rubrikraden" in session.notices and ": 10." in session.notices
    assert "Saknar efternamn: Bo." in session.notices


def test_namesakes_are_two_pupils_told_apart_by_class_or_number(session: Session) -> None:
    session.upload(
        "Namn;Klass\nAnna Berg;7A\nAnna Berg;7B\nBo Ek;7A\nBo Ek;7A\nbo ek;7A\nBo Ek (7A) (1);7B\n"
    )
    assert session.names[:2] == ["Anna Berg (7A)", "Anna Berg (7B)"]
    assert session.names[2:5] == ["Bo Ek (7A) (2)", "Bo Ek (7A) (3)", "bo ek (7A) (4)"]
    # A name that looks like a number given here keeps it: no two pupils are shown alike.
    assert session.names[5] == "Bo Ek (7A) (1)"
    assert "Flera rader har samma namn: Anna Berg, Bo Ek" in session.notices
    groups = session.divide(mode="count", number=2)
    assert sorted(map(len, groups)) == [3, 3]


def test_same_row_with_the_same_identity_is_one_pupil(session: Session) -> None:
    row = "Anna Berg;20110203-1234\n"
    session.upload(f"Namn;Personnummer\n{row}{row}Anna Berg;20110909-1234\n")
    assert session.names == ["Anna Berg (1)", "Anna Berg (2)"]
    assert "räknas en gång: Anna Berg" in session.notices
    assert "2011" not in json.dumps(session.result.payload)


def test_workbook_is_read_also_with_numbers_blanks_and_a_title(session: Session) -> None:
    rows = [["Klasslista"], [], ["Nr", "Förnamn", "Efternamn", "Klass"], [1, "Åsa", "Öberg", 7.0]]
    session.upload(make_xlsx({"Blad1": [*rows, [None] * 4, [2, "Bo", "Ek", 7]]}), "7a.xlsx")
    assert session.names == ["Åsa Öberg", "Bo Ek"] and session.rows[0]["klass"] == "7"
    assert session.notices == ""
    session.divide(mode="size", number=2)


def test_first_visible_sheet_with_a_roster_is_used_and_the_others_named(session: Session) -> None:
    sheets: dict[str, list[list[Any]]] = {
        "Gömt": ROSTER,
        "Info": [["Skolan"], ["Läsåret"]],
        "7A": ROSTER,
        "7B": [["Namn"], ["Eva Ek"]],
    }
    session.upload(make_xlsx(sheets, hidden="Gömt"), "7a.xlsx")
    assert session.names == ["Åsa Öberg", "Bo Ek", "Märta Ås"]
    assert "Jag läste ”7A” och inte 7B" in session.notices


def test_workbook_that_lies_about_its_size_is_read_whole(session: Session) -> None:
    entries = read_zip(make_xlsx({"Blad1": ROSTER}))
    lies = {name: data.replace(b'ref="A1:C4"', b'ref="A1"') for name, data in entries.items()}
    session.upload(make_zip(lies), "7a.xlsx")
    assert len(session.names) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "är tom"),
        ("a.csv", b" \r\n;;\r\n", "är tom"),
        ("a.csv", codecs.BOM_UTF8, "är tom"),
        ("a.csv", b"F\xc3\xb6rnamn;Efternamn\n", "inga elever under dem"),
        ("a.csv", b"Datum;Belopp\n2025-01-01;12\n2025-01-02;13\n", "inga elever i"),
        ("a.csv", b"a;b;c;d\ne;f;g;h\n", "Förnamn, Efternamn och Klass"),
        ("a.csv", b"%PDF-1.7 ...", "en PDF"),
        ("a.csv", b"<html><table>", "en webbsida"),
        ("a.csv", bytes(range(256)), "ingen textfil"),
        ("a.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), r"äldre Excel-formatet"),
        ("a.xlsx", b"PK\x03\x04 not a zip", "går inte att öppna som Excel-fil"),
        ("a.csv", b"Namn\n" + b"x" * 5_000_001, "för stor"),
        ("a.csv", make_roster(301).encode(), "301 elever"),
        ("a.csv", b'Namn\n"' + b"a" * 200_000, "går inte att läsa som tabell"),
    ],
)
def test_wrong_files_are_refused_with_what_to_do(
    session: Session, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(ToolUserError, match=message):
        session.upload(content, name)


def test_empty_and_foreign_workbooks_are_refused(session: Session) -> None:
    with pytest.raises(ToolUserError, match="är tom"):
        session.upload(make_xlsx({"Blad1": [], "Blad2": []}), "a.xlsx")
    with pytest.raises(ToolUserError, match="går inte att öppna"):
        session.upload(make_zip({"word/document.xml": b"<w/>"}), "a.xlsx")
    with pytest.raises(ToolUserError, match="för stor"):
        session.upload(make_zip({"xl/worksheets/sheet1.xml": bytes(60_000_000)}), "a.xlsx")


def test_missing_and_several_files_are_refused(session: Session) -> None:
    with pytest.raises(ToolUserError, match="Ladda upp en klasslista först"):
        session.start()
    session.upload(make_roster(4))
    with pytest.raises(ToolUserError, match="en klasslista i taget"):
        session.start({"1.csv": make_roster(4), "2.csv": make_roster(3)})
    session.files = {}
    with pytest.raises(ToolUserError, match="fortsätter vi där vi var"):
        session.act("draw_pupil")


# --- grouping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_each_pupil_is_in_exactly_one_group_and_sizes_are_balanced(
    session: Session, seed: int
) -> None:
    rng = random.Random(seed)
    session.state["seed"] = seed
    count = rng.randint(2, 60)
    session.upload(make_roster(count))
    everybody = session.names
    for _ in range(3):
        absent = rng.sample(everybody, rng.randint(0, count - 2))
        present = set(everybody) - set(absent)
        mode = rng.choice(["size", "count"])
        number = rng.randint(1, len(present) if mode == "count" else count)
        groups = session.divide(mode=mode, number=number, absent=absent)
        sizes = [len(group) for group in groups]
        assert set().union(*groups) == present and sum(sizes) == len(present)
        assert max(sizes) - min(sizes) <= 1
        if mode == "count":
            assert len(groups) == number


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(24, 4, [4] * 6), (25, 4, [4, 4, 4, 4, 4, 5]), (27, 4, [3, *[4] * 6]), (3, 4, [3])],
)
def test_group_size_gives_the_nearest_number_of_groups(
    session: Session, count: int, size: int, sizes: list[int]
) -> None:
    session.upload(make_roster(count))
    assert sorted(map(len, session.divide(mode="size", number=size))) == sizes


def test_pairs_meet_again_far_less_often_than_by_chance(session: Session) -> None:
    session.upload(make_roster(24))
    names = session.names
    divisions = [session.divide(mode="size", number=4) for _ in range(10)]
    rng = random.Random(1)
    by_chance = []
    for _ in range(10):
        order = rng.sample(names, 24)
        by_chance.append([set(order[i : i + 4]) for i in range(0, 24, 4)])
    # 360 places for 276 pairs: 84 repeats are the least there can be, chance gives about 150.
    assert count_repeats(by_chance) > 130
    assert count_repeats(divisions) <= 95
    assert count_repeats(divisions[:5]) <= 5
    assert max(Counter(pair for groups in divisions for pair in pairs_of(groups)).values()) <= 3


def test_repeats_are_told_truthfully(session: Session) -> None:
    session.upload(make_roster(6))
    first = session.divide(mode="size", number=2)
    assert "6 elever i 3 grupper med 2 i varje" in session.text
    second = session.divide(mode="size", number=2)
    assert not set(pairs_of(first)) & set(pairs_of(second))
    assert "Inga har varit i samma grupp tidigare." in session.text
    third = session.divide(mode="count", number=2)
    assert not set(pairs_of(third)) & {*pairs_of(first), *pairs_of(second)}
    # 12 of the 15 pairs have met, so at least 3 of the next 6 meet again.
    fourth = session.divide(mode="count", number=2)
    met = {*pairs_of(first), *pairs_of(second), *pairs_of(third)}
    repeated = len(set(pairs_of(fourth)) & met)
    assert repeated >= 3
    assert f"{repeated} av 6 par har varit i samma grupp tidigare" in session.text


@pytest.mark.parametrize("seed", range(5))
def test_search_keeps_the_true_cost_also_where_blocks_move(seed: int) -> None:
    rng = random.Random(seed)
    count, sizes = 20, [5, 5, 4, 3, 3]
    weights = [[0] * count for _ in range(count)]
    for i, j in combinations(range(count), 2):
        weights[i][j] = weights[j][i] = rng.choice([0, 200, 1000, 3000])
    rules = [[0, 1, 2], [3, 4], [5, 6], [7, 8]]
    blocks, refused = app.join_blocks(rules, set(), sizes, count, rng)
    assert refused == []
    start = app.pack_blocks(blocks, sizes, rng)
    groups, cost = app.anneal_groups(start, weights, rng)
    assert cost == sum(weights[i][j] for group in groups for i, j in combinations(group, 2))
    assert sorted(map(len, groups)) == sorted(sizes)
    assert all(any(set(rule) <= set(group) for group in groups) for rule in rules)

    near: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for a, b, closeness in app.list_neighbours(count, 5):
        near[a].append((b, closeness))
        near[b].append((a, closeness))
    seats, cost = app.anneal_seats(rng.sample(range(count), count), near, weights, rng)
    assert sorted(seats) == list(range(count))
    assert cost == sum(
        closeness * weights[seats[a]][seats[b]] for a, b, closeness in app.list_neighbours(count, 5)
    )


def test_recent_pairs_are_avoided_more_than_old_ones() -> None:
    weights = [app.weigh_age(age) for age in range(300)]
    assert weights == sorted(weights, reverse=True) and weights[-1] > 0
    assert weights[0] > 4 * weights[30]


def test_redo_replaces_the_latest_division(session: Session) -> None:
    session.upload(make_roster(12))
    first = session.divide(mode="size", number=3)
    second = session.divide(mode="size", number=3, redo=True)
    assert first != second
    assert len(session.state["divisions"]) == 1


def test_keep_apart_and_together_are_honoured_when_possible(session: Session) -> None:
    session.upload(make_roster(24))
    apart = "Elev001, Elev002, Elev003, Elev004\nelev005 Ek och Elev006\nElev001 & Elev007"
    together = "Elev010, Elev011\nElev011; Elev012\nElev020 + Elev021"
    for _ in range(8):
        groups = session.divide(mode="size", number=4, apart=apart, together=together)
        group_of = {name[4:7]: i for i, group in enumerate(groups) for name in group}
        assert len({group_of[number] for number in ("001", "002", "003", "004")}) == 4
        assert group_of["005"] != group_of["006"] and group_of["001"] != group_of["007"]
        assert group_of["010"] == group_of["011"] == group_of["012"]
        assert group_of["020"] == group_of["021"]
        assert session.notices == ""
    prefill = session.result.action("assign_groups")["prefill"]
    assert (prefill["apart"], prefill["together"]) == (apart, together)


def test_keep_apart_as_tight_as_can_be_is_still_honoured(session: Session) -> None:
    session.upload(make_roster(24))
    lines = [", ".join(f"Elev{n:03}" for n in range(k, k + 6)) for k in range(1, 25, 6)]
    for _ in range(3):
        groups = session.divide(mode="count", number=6, apart="\n".join(lines))
        assert all(len({(int(name[4:7]) - 1) // 6 for name in group}) == 4 for group in groups)
        assert session.notices == ""


def test_wishes_that_cannot_be_met_are_explained(session: Session) -> None:
    session.upload(make_roster(8))
    groups = session.divide(
        mode="count",
        number=2,
        apart="Elev001, Elev002, Elev003",
        together="Elev004, Elev005\nElev001, Elev002\nElev004, Elev006, Elev007, Elev008",
    )
    assert sorted(map(len, groups)) == [4, 4]
    assert any({"Elev004 Ek", "Elev005 Ek"} <= group for group in groups)
    notices = session.notices
    assert "de är 3 och grupperna bara 2" in notices
    assert "hamnade intill varandra: Elev00" in notices
    assert "Elev001 Ek och Elev002 Ek kunde inte vara ihop: några av dem ska hållas isär" in notices
    assert "och Elev008 Ek kunde inte vara ihop: de är 5 och grupperna har högst 4" in notices


def test_blocks_that_do_not_fit_the_groups_are_explained(session: Session) -> None:
    session.upload(make_roster(6))
    together = "Elev001, Elev002\nElev003, Elev004\nElev005, Elev006"
    groups = session.divide(mode="count", number=2, together=together)
    assert sorted(map(len, groups)) == [3, 3]
    assert "Elev005 Ek och Elev006 Ek kunde inte vara ihop: det går inte ihop" in session.notices
    assert any({"Elev001 Ek", "Elev002 Ek"} <= group for group in groups)


def test_unclear_names_in_wishes_are_told_and_the_rest_counts(session: Session) -> None:
    session.upload("Namn\nAnna Berg\nAnna Ek\nBo Kovač\nEva Ås\n")
    apart = "Anna, Bo\nKalle, Bo, Eva\nEva\nannab, BO KOVAC\nAnna B – Ek"
    groups = session.divide(mode="count", number=2, apart=apart)
    assert "”Anna” kan vara flera: Anna Berg, Anna Ek" in session.notices
    assert "hittar ingen elev som heter ”Kalle”" in session.notices
    assert "raden ”Eva” följdes inte" in session.notices
    assert not any({"Bo Kovač", "Eva Ås"} <= group for group in groups)
    assert not any({"Anna Berg", "Anna Ek"} <= group for group in groups)


def test_absent_pupils_are_left_out_of_groups_and_of_wishes(session: Session) -> None:
    session.upload(make_roster(9))
    groups = session.divide(
        mode="size", number=4, absent=["Elev001 Ek"], apart="Elev001, Elev002, Elev003"
    )
    assert sorted(map(len, groups)) == [4, 4]
    assert not any({"Elev002 Ek", "Elev003 Ek"} <= group for group in groups)
    assert "Frånvarande (1): Elev001 Ek." in session.notices
    assert session.result.action("draw_pupil")["prefill"]["absent"] == ["Elev001 Ek"]
    session.state["absent_on"] = "2020-01-01"
    session.act("forget")
    assert "absent" not in session.result.action("draw_pupil").get("prefill", {})


def test_a_class_can_be_chosen_when_there_are_several(session: Session) -> None:
    rows = [[f"Elev{n} Ek", "7A" if n % 2 else "7B"] for n in range(12)]
    session.upload(make_csv([["Namn", "Klass"], *rows]))
    assert [o["value"] for o in session.result.field("assign_groups", "klass")["options"]] == [
        "*",
        "7A",
        "7B",
    ]
    groups = session.divide(mode="size", number=3, klass="7A")
    assert set().union(*groups) == {f"Elev{n} Ek" for n in range(1, 12, 2)}
    assert session.result.action("assign_groups")["prefill"]["klass"] == "7A"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "size", "number": 0}, "minst 1"),
        ({"mode": "count", "number": 9}, "9 grupper av 8 elever"),
        ({"mode": "size", "number": 2, "apart": "a, b\n" * 2000}, "för många"),
    ],
)
def test_impossible_figures_are_refused(
    session: Session, values: dict[str, Any], message: str
) -> None:
    session.upload(make_roster(8))
    with pytest.raises(ToolUserError, match=message):
        session.divide(**values)


def test_everybody_absent_is_refused(session: Session) -> None:
    session.upload(make_roster(2))
    everybody = session.names
    for action_id in ("assign_groups", "assign_seats", "draw_pupil"):
        with pytest.raises(ToolUserError, match="närvarande"):
            session.act(action_id, absent=everybody)


def test_same_state_and_form_give_the_same_answer(session: Session) -> None:
    session.upload(make_roster(25))
    session.divide(mode="size", number=4)
    state = session.state
    answers = []
    for _ in range(2):
        session.state = json.loads(json.dumps(state))
        session.divide(mode="size", number=4, apart="Elev001, Elev002")
        answers.append((session.result.payload, session.state))
    assert answers[0] == answers[1]
    session.state = {**state, "seed": 8}
    session.divide(mode="size", number=4, apart="Elev001, Elev002")
    assert answers[0][0] != session.result.payload


def test_answer_does_not_depend_on_the_process(session: Session) -> None:
    session.upload(make_roster(25))
    session.act("assign_groups", together="Elev003, Elev004, Elev005", apart="Elev001, Elev002")
    code = "import app, json; print(json.dumps(app.run_tool('', ''), sort_keys=True))"
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=script_bank.get_script("klasslista").parent,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(script_bank.RUNNER)},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1


def test_grouping_36_pupils_with_a_year_behind_them_is_quick(session: Session) -> None:
    session.upload(make_roster(36))
    for _ in range(3):
        session.divide(mode="size", number=4)
    session.state["divisions"] *= 60
    start = time.process_time()
    session.divide(mode="size", number=4)
    assert time.process_time() - start < 0.5


# --- memory ---------------------------------------------------------------------------------------


def test_memory_outlives_a_new_upload(session: Session) -> None:
    session.upload(make_roster(8))
    first = session.divide(mode="size", number=2, apart="Elev001, Elev002")
    before = session.state
    session.upload(make_roster(9))
    assert session.state == before
    assert "apart" not in session.result.action("assign_groups")["prefill"]
    second = session.divide(mode="size", number=2)
    assert not set(pairs_of(first)) & set(pairs_of(second))
    # The form after an upload could not show the wishes; left blank they still hold.
    assert session.result.action("assign_groups")["prefill"]["apart"] == "Elev001, Elev002"
    session.act("assign_groups", apart="")
    assert "apart" not in session.result.action("assign_groups")["prefill"]


def test_saved_wishes_can_be_declined_after_an_upload(session: Session) -> None:
    session.upload(make_roster(8))
    session.divide(mode="size", number=2, apart="Elev001, Elev002")
    session.start(session.files)
    session.divide(mode="size", number=2, saved_rules=False)
    assert session.state["form"].get("apart") is None


def test_state_stays_within_the_cap_over_a_school_year(session: Session) -> None:
    names = [f"Maximiliana-Alexandra{n:02} von Österström-Ångbäck" for n in range(40)]
    session.upload(make_csv([["Namn"], *([name] for name in names)]))
    rng = random.Random(2)
    for _ in range(200):
        order = rng.sample(names, 40)
        memory = app.read_memory(session.state)
        memory.divisions.append([order[i : i + 4] for i in range(0, 40, 4)])
        session.state = app.write_memory(memory)
    session.divide(mode="size", number=4)
    assert len(session.state["divisions"]) == 201
    assert len(json.dumps(session.state).encode()) < 64 * 1024


def test_state_has_a_bound_whatever_is_uploaded(session: Session) -> None:
    memory = app.Memory(seed=1)
    for lot in range(450):
        names = [f"{lot}-{n}-{'å' * 70}" for n in range(300)]
        memory.divisions.append([names])
        memory.seatings.append(app.Seating(30, False, names))
        memory.drawn |= dict.fromkeys(names[:9], lot)
    state = app.write_memory(memory)
    assert len(json.dumps(state, ensure_ascii=False).encode()) <= 256 * 1024
    assert len(state["divisions"]) >= 1 and len(state["seatings"]) >= 1


def test_state_of_another_version_is_a_new_memory(session: Session) -> None:
    session.state = {"version": 99, "divisions": "?"}
    session.upload(make_roster(4))
    session.divide(mode="size", number=2)
    assert session.state["version"] == 1


def test_forget_clears_history_and_keeps_wishes(session: Session) -> None:
    session.upload(make_roster(8))
    session.divide(mode="size", number=2, apart="Elev001, Elev002")
    session.act("assign_seats")
    session.draw()
    session.act("forget")
    assert "1 indelning i grupper" in session.notices
    assert not (session.state["divisions"] or session.state["seatings"] or session.state["drawn"])
    assert session.result.action("assign_groups")["prefill"]["apart"] == "Elev001, Elev002"
    with pytest.raises(ToolUserError, match="inget att exportera"):
        session.act("export")


# --- seating --------------------------------------------------------------------------------------


def seats_of(session: Session) -> list[list[str]]:
    _, *rows = session.result.table()
    return [[cell or "" for cell in row[1:]] for row in rows]


def neighbours_of(seats: list[list[str]]) -> set[frozenset[str]]:
    beside = {frozenset(pair) for row in seats for pair in pairwise(row)}
    behind = {
        frozenset(pair)
        for row, next_row in pairwise(seats)
        for pair in zip(row, next_row, strict=True)
    }
    return {pair for pair in beside | behind if "" not in pair}


def test_everybody_has_one_seat_and_empty_ones_are_at_the_back(session: Session) -> None:
    session.upload(make_roster(22))
    everybody = session.names
    session.act("assign_seats", rows=4, columns=6)
    seats = seats_of(session)
    assert [len(row) for row in seats] == [6] * 4
    assert sorted(name for row in seats for name in row if name) == everybody
    assert seats[-1][-2:] == ["", ""]


def test_previous_neighbours_are_avoided(session: Session) -> None:
    session.upload(make_roster(24))
    earlier: set[frozenset[str]] = set()
    for _ in range(4):
        session.act("assign_seats", rows=4, columns=6)
        now = neighbours_of(seats_of(session))
        assert not now & earlier
        earlier |= now
    assert "Inga har suttit intill varandra tidigare" in session.text


def test_apart_holds_for_seats_too(session: Session) -> None:
    session.upload(make_roster(9))
    for _ in range(5):
        session.act("assign_seats", rows=3, columns=3, apart="Elev001, Elev002, Elev003")
        together = {frozenset(p) for p in combinations([f"Elev00{n} Ek" for n in (1, 2, 3)], 2)}
        assert not neighbours_of(seats_of(session)) & together
        assert session.notices == ""
    session.upload(make_roster(3))
    session.act("assign_seats", rows=1, columns=3, apart="Elev001, Elev002, Elev003")
    assert "Allt gick inte ihop" in session.notices


def test_turn_order_is_random_or_in_swedish_alphabetical_order(session: Session) -> None:
    session.upload("Förnamn;Efternamn\nÖrjan;Ek\nÅke;Öst\nZara;Åberg\nÉva;Ärlig\nÄrna;Zorn\n")
    session.act("assign_seats", order="first")
    names = ["Éva Ärlig", "Zara Åberg", "Åke Öst", "Ärna Zorn", "Örjan Ek"]
    assert seats_of(session) == [[name] for name in names]
    session.act("assign_seats", order="last")
    last = ["Örjan Ek", "Ärna Zorn", "Zara Åberg", "Éva Ärlig", "Åke Öst"]
    assert seats_of(session) == [[name] for name in last]
    session.act("assign_seats", order="random")
    assert sorted(seats_of(session)) == sorted([name] for name in names)
    assert session.result.outputs("table")[0]["title"] == "Turordning"


def test_one_figure_of_the_room_is_enough_and_too_small_a_room_is_refused(
    session: Session,
) -> None:
    session.upload(make_roster(10))
    session.act("assign_seats", rows=3)
    assert [len(row) for row in seats_of(session)] == [4, 4, 4]
    session.act("assign_seats", rows=None, columns=4)
    assert [len(row) for row in seats_of(session)] == [4, 4, 4]
    with pytest.raises(ToolUserError, match="9 platser, men 10 elever"):
        session.act("assign_seats", rows=3, columns=3)
    with pytest.raises(ToolUserError, match="mellan 1 och"):
        session.act("assign_seats", rows=0, columns=3)


# --- drawing --------------------------------------------------------------------------------------


def test_everybody_is_drawn_once_before_anyone_twice(session: Session) -> None:
    session.upload(make_roster(6))
    everybody = session.names
    drawn = [session.draw() for _ in range(90)]
    for start in range(0, 90, 6):
        assert sorted(drawn[start : start + 6]) == everybody
    assert all(a != b for a, b in pairwise(drawn))


def test_absent_pupils_are_not_drawn_and_come_first_when_back(session: Session) -> None:
    session.upload(make_roster(5))
    away = ["Elev003 Ek"]
    drawn = [session.draw(absent=away) for _ in range(12)]
    assert away[0] not in drawn and len(set(drawn[:4])) == 4
    assert session.draw(absent=[]) == away[0]
    assert len({session.draw() for _ in range(5)}) == 5


def test_new_pupils_join_the_round(session: Session) -> None:
    session.upload(make_roster(3))
    drawn = [session.draw() for _ in range(3)]
    session.upload(make_roster(4))
    assert session.draw() == "Elev004 Ek" and "Elev004 Ek" not in drawn
    assert "4 av 4 elever" in session.text


# --- export ---------------------------------------------------------------------------------------


def read_csv(data: bytes) -> Rows:
    assert data.startswith(codecs.BOM_UTF8) and b"\r\n" in data
    return list(csv.reader(io.StringIO(data.decode("utf-8-sig")), delimiter=";"))


def test_latest_groups_and_seats_are_exported_and_can_be_read_back(session: Session) -> None:
    session.upload(make_csv(ROSTER))
    groups = session.divide(mode="size", number=2)
    session.act("assign_seats", rows=2, columns=2)
    seats = seats_of(session)
    session.act("export")
    assert "klasslista.xlsx, grupper.csv, placering.csv" in session.notices
    files = session.result.files
    assert list(files) == ["grupper.csv", "klasslista.xlsx", "placering.csv"]

    header, *rows = read_csv(files["grupper.csv"])
    assert header == ["Grupp", "Elev", "Klass"]
    assert {(row[0], row[1]) for row in rows} == {
        (f"Grupp {number}", name) for number, group in enumerate(groups, 1) for name in group
    }
    placed = read_csv(files["placering.csv"])
    assert [row[1:] for row in placed[1:]] == seats

    book = openpyxl.load_workbook(io.BytesIO(files["klasslista.xlsx"]))
    assert book.sheetnames == ["Grupper", "Placering"]
    assert [list(row) for row in book["Grupper"].values] == [header, *rows]
    # What was exported is itself a roster that can be read.
    session.upload(files["grupper.csv"])
    assert sorted(session.names) == ["Bo Ek", "Märta Ås", "Åsa Öberg"]


def test_formulas_in_names_are_text_in_the_exports(session: Session) -> None:
    evil = ["=HYPERLINK(A1)", "+cmd|x", "-Anna", "@SUM", "Bo; Ek"]
    session.upload(make_csv([["Namn"], *([name] for name in evil)]))
    session.act("assign_seats", order="first")
    session.act("export")
    files = session.result.files
    cells = [row[1] for row in read_csv(files["placering.csv"])[1:]]
    assert sorted(cells) == sorted([*(f"'{name}" for name in evil[:4]), "Bo; Ek"])
    sheet = openpyxl.load_workbook(io.BytesIO(files["klasslista.xlsx"]))["Placering"]
    assert {cell.data_type for row in sheet for cell in row} == {"s"}
    assert sorted(row[1] for row in list(sheet.values)[1:]) == sorted(evil)


def test_export_of_an_earlier_roster_says_so(session: Session) -> None:
    session.upload(make_roster(4))
    session.divide(mode="size", number=2)
    session.upload(make_roster(3))
    session.act("export")
    assert "Gjort med en tidigare lista, med elever utanför den här: Elev004 Ek." in session.notices


# --- as large as it gets --------------------------------------------------------------------------


def test_largest_roster_fits_the_policy_in_every_step(session: Session) -> None:
    long = "Å" * 60
    rows = [[f"{long}{n:03} {'Ö' * 15}", f"{'K' * 17}{n % 49}"] for n in range(300)]
    session.upload(make_csv([["Namn", "Klass"], *rows]))
    names = session.names
    unclear = "\n".join(f"x{n}, y" for n in range(700))
    session.divide(mode="size", number=2, absent=names[:50], apart=unclear)
    assert len(session.result.outputs("notice")) < 30 and "varningar till" in session.notices
    session.divide(mode="count", number=2, absent=[], apart="")
    session.act("assign_seats", rows=10, columns=30)
    session.act("assign_seats", rows=None, columns=None)
    session.draw()
    session.act("export")
