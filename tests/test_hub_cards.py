"""The cards of published recipes are what template and record make; records tell no paths."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from docs.render_card import to_html
from hub_cards import make
from tests.test_card import FULL, THIN
from timm_linop.card import ClassResult, Contraction, read_record, render, write_record
from timm_linop.errors import DataError, RecipeError

RECORDS = sorted(path.parent for path in make.HERE.glob("*/card.json"))
RICH = replace(
    FULL,
    contraction=Contraction(1.5e-7, 32),
    weakest=(ClassResult("8", 36, 30),),
    differences={"vanilla": {"lr": (0.02, 0.01)}},
)


def test_the_committed_cards_are_up_to_date() -> None:
    assert RECORDS
    assert make.stale() == [], "make cards"


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_a_record_tells_no_paths_and_has_its_figures(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".yaml", ".md", ".csv"):
            assert not re.search(r"(?<![\w.:/])/(tmp|home|root|work|Users)\b", file.read_text()), (
                file
            )
    data = read_record(folder / "card.json")
    assert {figure.path for figure in data.figures} == {
        path.relative_to(folder).as_posix() for path in (folder / "figures").iterdir()
    }
    rows = json.loads((folder / "results.json").read_text())
    assert [row["accuracy"] for row in rows] == [row.accuracy for row in data.results]
    assert data.contraction is not None
    assert {row.arm for row in data.results} >= {"dense", "pruned", "vanilla", "linop"}


def test_a_stale_card_is_found_and_made_anew(tmp_path: Path) -> None:
    shutil.copytree(RECORDS[0], tmp_path / "tiny")
    card = tmp_path / "tiny" / "README.md"
    fresh = card.read_text()
    card.write_text(fresh + "by hand\n")
    assert make.stale(tmp_path) == [card]
    ((place, text),) = make.cards(tmp_path)
    assert (place, text) == (card, fresh)


def test_a_run_is_taken_over_without_its_paths(tmp_path: Path) -> None:
    run = shutil.copytree(RECORDS[0], tmp_path / "run")
    (run / "recipe.yaml").write_text("pruned: /home/ann/pruned\ncompare: [/home/ann/vanilla]\n")
    place = make.record(run, "again", tmp_path / "cards")
    assert (place / "recipe.yaml").read_text() == "pruned: pruned\ncompare:\n- vanilla\n"
    assert read_record(place / "card.json") == replace(read_record(run / "card.json"), name="again")
    assert (place / "figures" / "widths.png").is_file()


@pytest.mark.parametrize("data", [RICH, *THIN], ids=lambda data: data.arm)
def test_a_record_renders_as_the_data_it_was_written_from(data, tmp_path: Path) -> None:
    write_record(data, tmp_path / "card.json")
    assert render(read_record(tmp_path / "card.json")) == render(data)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("{", "[", DataError),
        ('"arm"', '"arms"', DataError),
        ('"name": "resnet18-slim",', "", DataError),
        ('"accuracy": 93.1', '"accuracy": 931', RecipeError),
        ('"repo": "me/resnet18-slim"', '"repo": "/me"', RecipeError),
    ],
)
def test_a_damaged_record_is_refused(old: str, new: str, error: type, tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    write_record(FULL, path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(error):
        read_record(path)
    with pytest.raises(DataError, match="no record"):
        read_record(tmp_path / "none.json")


class _Shape(HTMLParser):
    """Counts a page's tags, and finds what is left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_a_card_is_a_whole_page(folder: Path) -> None:
    shape = _Shape(to_html((folder / "README.md").read_text()))
    assert not shape.open
    data = read_record(folder / "card.json")
    assert shape.seen["img"] == len(data.figures)
    assert shape.seen["table"] == 2  # results, and widths within a fold
    assert shape.seen["details"] == shape.seen["summary"] == 2
    assert shape.seen["tr"] == 2 + len(data.results) + len(data.pruning.widths)
    assert "script" not in shape.seen
