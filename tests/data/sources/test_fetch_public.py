"""`hafvt fetch` of public data becomes tables, and prints the next command."""

from __future__ import annotations

from io import BytesIO
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_LZMA, ZIP_STORED, ZipFile

import pytest

from hafvt.cli import main
from hafvt.data.prepare import prepare
from hafvt.data.sources import movielens
from hafvt.data.sources.fetch import fetch
from hafvt.errors import HafvtError


def zip_of(method=ZIP_STORED, **members):
    buffer = BytesIO()
    with ZipFile(buffer, "w", method) as file:
        for name, text in members.items():
            file.writestr(f"ml-1m/{name}.dat", text.encode("latin-1"))
    return buffer.getvalue()


MOVIES = (
    "1::Toy Story (1995)::Animation|Children's|Comedy\n2::Heat (1995)::Action|Crime\n"
    "3::Café (1995)::Drama\n4::War (1995)::Action|War\n"
)


RATINGS = (
    "7::2::5::978300760\n7::3::4::978300761\n7::1::4::978300762\n8::4::1::978300763\n8::3::1::978300764\n"
)


def test_fetch_movielens_writes_tables_that_prepare_reads(server, tmp_path, monkeypatch, capsys):
    server.files["ml-1m.zip"] = zip_of(movies=MOVIES, ratings=RATINGS)
    monkeypatch.chdir(tmp_path)
    options = ["--base-url", server.url("files"), "--allow-private"]
    assert main(["fetch", "movielens-1m", *options]) == 0
    output = capsys.readouterr()
    assert "3 of 5 interactions with 2 of 4 films" in output.err
    command = output.out.splitlines()[-1].removeprefix("next: hafvt ")
    assert command == (
        "fit raw/movielens-1m/interactions.csv raw/movielens-1m/items.csv --out movielens-1m-run"
    )
    data = prepare(*command.split()[1:3], tmp_path / "data")
    assert sorted(data.item_table.rows()) == [
        ("2", "action", "Heat (1995)", None),
        ("3", "drama", "Café (1995)", None),
    ]
    assert sorted(data.times.tolist()) == [978300760, 978300761, 978300764]
    assert main(["fetch", "movielens-1m", *options]) == 0
    assert "downloaded 0 files" in capsys.readouterr().out


def damaged_zip(method):
    """Returns an archive whose ratings are no valid stream of the method."""
    content = bytearray(zip_of(method, movies=MOVIES, ratings=RATINGS))
    start = content.index(b"ml-1m/ratings.dat") + len("ml-1m/ratings.dat")
    content[start : start + 16] = b"\xff" * 16
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zip_of(movies=MOVIES), "There is no item named 'ml-1m/ratings.dat'"),
        (zip_of(movies=MOVIES, ratings=RATINGS)[:-30], "it cannot be read"),
        (zip_of(movies=MOVIES, ratings="1::2::3::4::5\n"), "is not a table of user_id"),
        (zip_of(movies=MOVIES, ratings="1" * 2**17), "ratings.dat has more than"),
        (damaged_zip(ZIP_DEFLATED), "it cannot be read .*Remove it, and fetch"),
        (damaged_zip(ZIP_LZMA), "it cannot be read .*Remove it, and fetch"),
        (damaged_zip(ZIP_BZIP2), "it cannot be read .*Remove it, and fetch"),
        (b"no archive", "not a zip file: perhaps an error page"),
    ],
)
def test_fetch_movielens_damaged_archive_is_refused(server, tmp_path, content, message, monkeypatch):
    monkeypatch.setattr(movielens, "MAX_MEMBER_BYTES", 2**16)
    server.files["ml-1m.zip"] = content
    with pytest.raises(HafvtError, match=message):
        fetch("movielens-1m", out=tmp_path, base_url=server.url("files"), allow_private=True)
    assert not (tmp_path / "items.csv").exists()


def test_fetch_amazon_categories_prints_the_next_command(server, tmp_path, capsys):
    options = ["--base-url", server.url("good"), "--allow-private", "--out", str(tmp_path / "raw")]
    assert main(["fetch", "amazon-2023", "All_Beauty", "Video_Games", *options]) == 0
    domains = "all_beauty=All_Beauty video_games=Video_Games"
    assert f"next: hafvt prepare-amazon {tmp_path / 'raw'} --domains {domains}" in capsys.readouterr().out
