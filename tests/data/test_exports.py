"""Tables as offices export them: semicolons, cp1252, decimal commas, local dates, pictures in a folder."""

from __future__ import annotations

import gzip
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from PIL import Image

import hafvt
from hafvt.cli import main
from hafvt.data import readers
from hafvt.data.prepare import prepare
from hafvt.data.schema import read_tables
from hafvt.data.table_options import TableOptions, parse_numbers
from hafvt.data.times import parse_times
from hafvt.errors import ArgumentError, HafvtError, InputError
from tests.data.helpers import write

COLUMNS = {
    "user_id": "Kunde",
    "item_id": "Artikel",
    "timestamp": "Datum",
    "domain": "Gruppe",
    "title": "Text",
    "image": "Bild",
}
ORDERS = """Kunde;Artikel;Datum;Menge;Betrag
K1;A1;31.12.2025 14:05;1,00;1.234,50
K1;B1;01.01.2026 09:00;2,50;10,00
K1;A2;02.01.2026 09:00;-1,00;-5,00
K2;B1;03.01.2026 10:00;1,00;5,00
K2;VERSAND;03.01.2026 10:00;1,00;4,90
K3;VERSAND;03.01.2026 11:00;1,00;4,90
K4;A1;03.01.2026 12:00;;5,00
"""
ARTICLES = """Artikel;Gruppe;Text;Bild;Preis
A1;Küche;Käsemesser „Öland“;A1.jpg;9,90
A2;Küche;Löffel;A2.jpg;1,90
B1;Bad;Bürste;B1.jpg;3,50
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The tables of an export in cp1252, and pictures in a folder beside them."""
    for name, text in (("orders.csv", ORDERS), ("articles.csv", ARTICLES)):
        write(tmp_path / name, text.replace("\n", "\r\n").encode("cp1252"))
    (tmp_path / "pictures").mkdir()
    for item, color in (("A1", "red"), ("A2", "blue"), ("B1", "green")):
        Image.new("RGB", (20, 20), color).save(tmp_path / "pictures" / f"{item}.jpg")
    return tmp_path


def read(path: Path, **options: Any) -> pl.DataFrame:
    return read_tables(path, None, {}, TableOptions(**options))[0].frame


def test_prepare_office_export_guesses_and_reports_its_form(shop: Path, capsys: Any) -> None:
    data = prepare(
        shop / "orders.csv",
        shop / "articles.csv",
        shop / "data",
        columns=COLUMNS,
        unknown_items="drop",
        table_options=TableOptions(keep="Menge > 0", time_zone="Europe/Berlin"),
    )
    assert sorted(data.item_table.rows()) == [
        ("A1", "Küche", "Käsemesser „Öland“", "A1.jpg", 9.9),
        ("A2", "Küche", "Löffel", "A2.jpg", 1.9),
        ("B1", "Bad", "Bürste", "B1.jpg", 3.5),
    ]
    assert data.image_root == (shop / "pictures").resolve()
    assert sorted(data.times.tolist()) == [1_767_186_300, 1_767_254_400, 1_767_430_800]
    assert hafvt.info(data).removed == (
        "keep=Menge > 0: 1 of 4 users, 2 of 7 interactions",
        "unknown_items=drop: 1 of 3 users, 2 of 5 interactions",
    )
    reported = capsys.readouterr().err
    for part in (
        "orders.csv: the separator is ;",
        "articles.csv: not UTF-8, read as cp1252",
        "'31.12.2025 14:05' are read as %d.%m.%Y, in Europe/Berlin",
        "column 'Menge': '1,00' is read as 1.0",
        f"pictures are in {shop / 'pictures'}",
        "removed by keep=Menge > 0: 1 of 4 users, 2 of 7 interactions",
        "removed by unknown_items=drop: 1 of 3 users, 2 of 5 interactions",
    ):
        assert part in reported


def test_prepare_named_form_gives_the_guessed_dataset_without_reports(shop: Path, capsys: Any) -> None:
    guessed = prepare(
        shop / "orders.csv", shop / "articles.csv", shop / "a", columns=COLUMNS, unknown_items="drop"
    )
    capsys.readouterr()
    words = ["prepare", "orders.csv", "articles.csv", "b", "--unknown-items", "drop", "--separator", ";"]
    words += ["--encoding", "windows-1252", "--time-format", "%d.%m.%Y %H:%M", "--image-root", "pictures"]
    columns = [f"{name}={column}" for name, column in COLUMNS.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shop)
        assert main([*words, "--decimal", ",", "--columns", *columns]) == 0
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if not line.startswith("leakage: ")]
    assert lines == ["removed by unknown_items=drop: 1 of 4 users, 2 of 7 interactions"]
    assert "removed by" not in output.out
    hashes = [hafvt.Dataset.open(shop / name).manifest["sha256"] for name in ("a", "b")]
    assert hashes[0] == hashes[1]
    assert guessed.image_root == hafvt.Dataset.open(shop / "b").image_root


def test_prepare_keeps_all_users_and_items_by_default(shop: Path) -> None:
    log = pl.DataFrame({"user_id": ["u", "v"], "item_id": ["a", "b"], "timestamp": [1, 2]})
    items = pl.DataFrame({"item_id": ["a", "b", "c"], "domain": ["x", "y", "x"]})
    data = prepare(log, items, shop / "data")
    assert (data.num_users, data.num_items) == (2, 3)
    assert hafvt.info(data).removed == ()


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "latin-1", "utf-8-sig"])
@pytest.mark.parametrize("packer", [bytes, gzip.compress])
def test_read_tables_encoding_is_decoded(tmp_path: Path, encoding: str, packer: Any) -> None:
    text = 'user_id\titem_id\ttimestamp\nMüller\t"a\tb"\t1\nO\tñ\t2\n'
    path = write(
        tmp_path / f"log.csv{'.gz' if packer is gzip.compress else ''}", packer(text.encode(encoding))
    )
    named = read(path, encoding=encoding, quoting="standard")
    assert named.select("user_id", "item_id").rows() == [("Müller", "a\tb"), ("O", "ñ")]
    if encoding != "utf-16-le":  # without a mark, which could be anything
        assert read(path, quoting="standard").equals(named)


def test_read_tables_of_another_encoding_do_not_need_the_slow_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_csv_rows", None)
    path = write(tmp_path / "log.csv", 'user_id,item_id,timestamp\nMüller,a,1\nO,"é",2\n'.encode("cp1252"))
    assert read(path)["user_id"].to_list() == ["Müller", "O"]
    path = write(tmp_path / "end.csv", "timestamp,item_id,user_id\n1,a,café".encode("cp1252"))
    assert read(path)["user_id"].to_list() == ["café"]


def test_read_tables_wrong_encoding_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user_id,item_id,timestamp\nu,\x81,1\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"not cp1252 text\. Name its encoding by --encoding"):
        read(path, encoding="cp1252")


@pytest.mark.parametrize("separator", [";", "|", "tab", ":"])
def test_read_tables_separator_is_taken(tmp_path: Path, separator: str, capsys: Any) -> None:
    sign = "\t" if separator == "tab" else separator
    path = write(tmp_path / "log.csv", f"user_id{sign}item_id{sign}timestamp\nu{sign}a,b,c,d{sign}1\n")
    (row,) = (
        prepare(path, None, tmp_path / "out", table_options=TableOptions(separator=separator))
        .item_table["item_id"]
        .to_list()
    )
    assert row == "a,b,c,d"
    assert "separator" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": ";;"}, "--separator ;;: name one sign"),
        ({"encoding": "base64"}, "--encoding base64: name an encoding such as"),
        ({"encoding": "cp99"}, "--encoding cp99: name an encoding such as"),
        ({"time_zone": "Berlin"}, "--time-zone Berlin: name a time zone such as Europe/Berlin"),
        ({"time_format": "dd.mm.yyyy"}, "--time-format dd.mm.yyyy: it has no day: write it as %d"),
        ({"time_format": "%H:%M"}, "--time-format %H:%M: it has no day"),
        ({"time_format": "%d.%m.%Y %Z"}, "write the name in place of %Z, and give --time-zone"),
        ({"keep": " or ".join(["qty > 0"] * 200)}, "it is too long: write qty in"),
        ({"keep": "qty" + " - 1" * 400 + " > 0"}, "it is too long: write qty in"),
        ({"keep": "qty in " + "(" * 9000}, "not a condition such as"),
        ({"keep": "qty >"}, "--keep qty >: not a condition such as"),
        ({"keep": "select 1"}, "not a condition such as"),
        ({"keep": "read_csv('x')"}, "not a condition such as"),
        ({"decimal": ";"}, "--decimal is ';': choose auto or . or ,"),
    ],
)
def test_table_options_wrong_value_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message.replace("(", r"\(").replace(".", r"\.")):
        hafvt.TableOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unknown_items": "keep"}, "--unknown-items is 'keep': choose error or drop"),
        ({"image_root": "nowhere"}, "--image-root nowhere is no folder: name the folder"),
    ],
)
def test_prepare_wrong_option_is_refused_before_anything_is_written(
    shop: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(HafvtError, match=message.replace("(", r"\(").replace(".", r"\.")):
        prepare(
            shop / "orders.csv",
            shop / "articles.csv",
            shop / "data",
            columns=COLUMNS,
            **({"unknown_items": "drop"} | options),
        )
    assert not (shop / "data").exists()


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["31.12.2025 14:05", "1.2.2025"], ["2025-12-31T14:05", "2025-02-01"]),
        (["31.12.25 14:05:59"], ["2025-12-31T14:05:59"]),
        (["12/31/2025 2:05 PM", "1/2/2025 12:00 am"], ["2025-12-31T14:05", "2025-01-02"]),
        (["31/12/2025", "01/02/2025 23:59"], ["2025-12-31", "2025-02-01T23:59"]),
        (["2025/12/31 10:00"], ["2025-12-31T10:00"]),
        (["31.12.99", "31.12.68", "31.12.69"], ["1999-12-31", "2068-12-31", "1969-12-31"]),
        (["31-12-2025, 10:00"], ["2025-12-31T10:00"]),
    ],
)
def test_parse_times_plain_local_dates_are_guessed(texts: list[str], expected: list[str]) -> None:
    times = parse_times(pl.Series(texts))
    seconds = [
        int(datetime.fromisoformat(f"{text}{'' if 'T' in text else 'T00:00'}Z").timestamp())
        for text in expected
    ]
    assert times.values.to_list() == seconds
    assert times.time_format


KEEP_HEADER = "user_id;item_id;timestamp;qty;status\n"


@pytest.mark.parametrize(
    ("rows", "keep", "decimal", "place"),
    [
        ("u;a;1;1.5;x\nv;a;1;2,5;x\n", "qty > 0", ",", "row 2, column 'qty', value '1.5': not a number"),
        ("u;a;1;1,5;x\nv;a;1;2,5;x\nv;b;1;?;x\n", "qty > 0", "auto", "row 4, column 'qty', value '\\?'"),
        ("u;a;1;1;x\nv;a;1;?;x\n", "status = 'x' and qty > 0", "auto", "row 3, column 'qty', value '\\?'"),
        ("u;a;1;1;x\n", "status ~ '('", "auto", "regex parse error"),
    ],
)
def test_prepare_keep_error_names_the_wrong_value(
    tmp_path: Path, rows: str, keep: str, decimal: Any, place: str
) -> None:
    path = write(tmp_path / "log.csv", KEEP_HEADER + rows)
    with pytest.raises(HafvtError, match=place):
        prepare(path, None, tmp_path / "out", table_options=TableOptions(keep=keep, decimal=decimal))


def test_prepare_keep_nan_meets_no_comparison_and_dates_as_text_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "log.csv", KEEP_HEADER + "u;a;31.12.2025;nan;x\nv;b;01.01.2026;1;x\n")
    frame = pl.DataFrame(
        {"user_id": ["u", "v"], "item_id": ["a", "b"], "timestamp": [1, 2], "qty": [float("nan"), 1.0]}
    )
    for number, source in enumerate((path, frame)):
        data = prepare(source, None, tmp_path / f"{number}", table_options=TableOptions(keep="qty > 0"))
        assert data.item_table["item_id"].to_list() == ["b"]
    options = TableOptions(keep="timestamp > '01.01.2025'")
    prepare(path, None, tmp_path / "dates", table_options=options)
    assert "'timestamp': --keep compares dates such as '31.12.2025' as text" in capsys.readouterr().err


def test_read_tables_one_column_for_users_and_items_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user_id,item_id,timestamp\nu,a,1\n")
    with pytest.raises(InputError, match="'item_id': it is both user_id and item_id"):
        prepare(path, None, tmp_path / "out", columns={"user_id": "item_id"})


def test_parse_times_of_a_zone_are_converted_unless_they_name_one() -> None:
    for values in (["2025-07-01T12:00", "2025-07-01T12:00Z"], ["2025-01-01T12:00", "2025-01-01T12:00+02:00"]):
        local, named = parse_times(pl.Series(values), time_zone="Europe/Berlin").values
        assert local - parse_times(pl.Series(values)).values[0] == (-7200 if "-07-" in values[0] else -3600)
        assert named == parse_times(pl.Series(values)).values[1]
    noon = pl.Series([datetime(2025, 7, 1, 12)])
    assert parse_times(noon, time_zone="Europe/Berlin").values[0] == parse_times(noon).values[0] - 7200
    missing = parse_times(pl.Series(["2025-03-30T02:30"]), time_zone="Europe/Berlin").values[0]
    assert missing == datetime.fromisoformat("2025-03-30T03:30+02:00").timestamp()


def test_read_tables_dates_that_may_begin_with_day_or_month_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user_id,item_id,timestamp\nu,a,01/02/2025\nu,b,03/04/2025\n")
    with pytest.raises(ArgumentError, match=r"'01/02/2025' .* give --time-format '%d/%m"):
        read(path)
    day_first, month_first = (
        read(path, time_format=form)["timestamp"].to_list() for form in ("%d/%m/%Y", "%m/%d/%Y")
    )
    assert day_first[0] > month_first[0]


def test_read_tables_odd_date_is_refused_with_the_row(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user_id,item_id,timestamp\nu,a,31.12.2025\nu,b,32.12.2025\n")
    with pytest.raises(InputError, match="not a time") as caught:
        read(path)
    assert caught.value.row == 3
    with pytest.raises(InputError, match="not a time") as caught:
        read(path, time_format="%d.%m.%Y")
    assert caught.value.row == 3
    excel = write(tmp_path / "excel.csv", "user_id;item_id;timestamp\nu;a;45291,58\nu;b;45292\n")
    with pytest.raises(InputError, match="not a time"):
        read(excel, decimal=".")
    excel = write(tmp_path / "excel.csv", "user_id;item_id;timestamp\nu;a;45291,58\nu;b;45292,5\n")
    assert read(excel)["timestamp"].to_list() == [45291.58, 45292.5]


@pytest.mark.parametrize(
    ("texts", "decimal", "numbers"),
    [
        (["1", "-2.5", ""], "auto", [1.0, -2.5, None]),
        (["1,5", "1.234,50"], "auto", [1.5, 1234.5]),
        (["1,234.5", "7"], "auto", [1234.5, 7.0]),
        (["1,234"], ",", [1.234]),
        (["1,234"], ".", [1234.0]),
        (["paid", "1"], "auto", None),
    ],
)
def test_parse_numbers_of_either_form(texts: list[str], decimal: Any, numbers: list[float] | None) -> None:
    parsed = parse_numbers(pl.Series("qty", texts), decimal)
    assert (None if parsed is None else parsed.to_list()) == numbers


def test_parse_numbers_that_may_have_thousands_or_decimals_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"column 'qty': '1,234' has .*: choose --decimal \. or ,"):
        parse_numbers(pl.Series("qty", ["1", "1,234"]))


@pytest.mark.parametrize(
    ("condition", "items"),
    [
        ("qty > 0", ["a", "c"]),
        ("qty > 0 and status = 'paid'", ["a"]),
        ("status in ('paid', 'sent')", ["a", "b", "c"]),
        ("qty is null", ["d"]),
        ('"Menge Stk" between 2 and 3', ["b", "c"]),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "frame"])
def test_read_tables_keep_conditions(tmp_path: Path, condition: str, items: list[str], kind: str) -> None:
    frame = pl.DataFrame(
        {
            "user_id": ["u"] * 4,
            "item_id": list("abcd"),
            "timestamp": range(4),
            "qty": [1.5, -1, 2, None],
            "status": ["paid", "paid", "sent", None],
            "Menge Stk": [1, 2, 3, 4],
        }
    )
    frame.write_csv(tmp_path / "log.csv")
    frame.write_ndjson(tmp_path / "log.jsonl")
    source = frame.to_pandas() if kind == "frame" else tmp_path / f"log.{kind}"
    assert read(source, keep=condition)["item_id"].to_list() == items


def test_read_tables_keep_names_columns_values_and_rows(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,qty\nu,a,1,1\nu,b,2,many\nu,c,3,0\nu,d,x,1\n"
    path = write(tmp_path / "log.csv", text)
    with pytest.raises(InputError, match=r"no column 'Qty' among user_id.*Correct --keep"):
        read(path, keep="Qty > 0")
    with pytest.raises(InputError, match=r"row 3, column 'qty', value 'many': not a number") as caught:
        read(path, keep="qty > 0")
    assert caught.value.row == 3
    write(path, text.replace("many", "0"))
    with pytest.raises(InputError, match="not a time") as caught:
        read(path, keep="qty > 0")
    assert caught.value.row == 5  # of the file, whose rows 3 and 4 are left out
    for condition in ("qty", "count(*) > 1", "1 = 1"):
        with pytest.raises(ArgumentError, match="it is not true or false for a row"):
            read(path, keep=condition)
    with pytest.raises(HafvtError, match="no interaction meets it"):
        read(path, keep="qty > 5")


def test_prepare_unknown_items_without_any_known_raises(shop: Path) -> None:
    log = pl.DataFrame({"user_id": ["u"], "item_id": ["x"], "timestamp": [1]})
    items = pl.DataFrame({"item_id": ["y"]})
    with pytest.raises(InputError, match="leave out their interactions by --unknown-items drop"):
        prepare(log, items, shop / "data")
    with pytest.raises(HafvtError, match="no interaction has an item of the items table"):
        prepare(log, items, shop / "data", unknown_items="drop")


LOG = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["A1", "A2", "B1"], "timestamp": [1, 2, 3]})


def pictures(shop: Path, images: list[str | None], **options: Any) -> tuple[Path | None, list[str | None]]:
    """Returns the picture folder and the paths of a dataset of three items in a pandas data frame."""
    items = pd.DataFrame({"item_id": ["A1", "A2", "B1"], "image": images})
    data = prepare(LOG, items, shop / "data", overwrite=True, **options)
    return data.image_root, data.item_table.sort("item_id")["image"].to_list()


def test_prepare_pictures_of_a_data_frame_are_found(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = (shop / "pictures").resolve()
    names = ["A1.jpg", "A2.jpg", None]
    assert pictures(shop, [str(folder / "A1.jpg"), str(folder / "A2.jpg"), None]) == (folder, names)
    assert pictures(shop, ["A1.jpg", "A2.jpg", None], image_root=folder) == (folder, names)
    assert hafvt.encode(shop / "data", image="classic")["image"].present.sum() == 2
    monkeypatch.chdir(shop)
    assert pictures(shop, ["pictures/A1.jpg", "pictures/A2.jpg", None]) == (folder, names)
    assert pictures(shop, ["x/A1.jpg", None, None]) == (None, ["x/A1.jpg", None, None])
    windows = ["pictures\\A1.jpg", None, "https://shop.example/b.jpg"]
    assert pictures(shop, windows, image_root=shop)[1] == ["pictures/A1.jpg", None, windows[2]]
    with pytest.raises(HafvtError, match=r"--image-root .* lacks x/A1.jpg and others"):
        pictures(shop, ["x/A1.jpg", None, None], image_root=folder)


def test_prepare_pictures_are_matched_by_the_names_of_files(shop: Path, capsys: Any) -> None:
    items = pl.DataFrame({"item_id": ["A1", "A2", "C9"]})
    log = LOG.with_columns(item_id=pl.Series(["A1", "A2", "C9"]))
    data = prepare(log, items, shop / "data", image_root=shop / "pictures")
    assert sorted(data.item_table.select("item_id", "image").rows()) == [
        ("A1", "A1.jpg"),
        ("A2", "A2.jpg"),
        ("C9", None),
    ]
    assert "pictures of 2 of 3 items, by the names of the files" in capsys.readouterr().err
    with pytest.raises(HafvtError, match="is named by an item, such as"):
        prepare(LOG, pl.DataFrame({"item_id": ["A1", "A2", "B1"]}), shop / "no", image_root=shop / "data")
