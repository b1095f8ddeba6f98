"""Write the cards of published recipes anew: ``make cards``.

Each folder here holds what a run recorded (``card.json``, ``results.json``, ``recipe.yaml``,
``metrics.csv``, figures) and the card that the template makes of ``card.json``, so that a card
needs no training and comes out the same everywhere.

    python -m hub_cards.make                            # write all cards anew
    python -m hub_cards.make --check                    # fail where one is not up to date
    python -m hub_cards.make --record RUN linop-digits  # take over a finished run
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import yaml

from timm_linop import card, markdown

HERE = Path(__file__).parent
_TAKEN = ("results.json", "evaluation.json", "per_class.csv", "metrics.csv")


def cards(folder: Path = HERE) -> Iterator[tuple[Path, str]]:
    """Render the card of each record.

    Args:
        folder: Where the records' folders are.

    Yields:
        Where a card belongs, and its Markdown.

    Example:
        >>> all(text.startswith("---") for _, text in cards())
        True
    """
    for record in sorted(folder.glob("*/card.json")):
        yield record.with_name("README.md"), card.render(card.read_record(record))


def stale(folder: Path = HERE) -> list[Path]:
    """Find cards that are not what template and record make.

    Args:
        folder: Where the records' folders are.

    Example:
        >>> stale()
        []
    """
    return [
        path
        for path, text in cards(folder)
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def record(run: Path, name: str, folder: Path = HERE) -> Path:
    """Take over what a finished run recorded, without the paths of its machine.

    Args:
        run: The run folder.
        name: The recipe's name, which becomes the card's title.
        folder: Where the records' folders are.

    Returns:
        The record's folder; one of that name is replaced.

    Raises:
        DataError: The run has no card.json, or a damaged one.
    """
    data = replace(card.read_record(run / "card.json"), name=name)
    place = folder / name
    if place.exists():
        shutil.rmtree(place)
    (place / "figures").mkdir(parents=True)
    card.write_record(data, place / "card.json")
    for figure in data.figures:
        shutil.copy(run / figure.path, place / figure.path)
    for file in _TAKEN:
        if (run / file).is_file():
            shutil.copy(run / file, place / file)
    settings = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    told = {key: _public(value) for key, value in settings.items()}
    (place / "recipe.yaml").write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    return place


def _public(value: object) -> object:
    if isinstance(value, list):
        return [_public(each) for each in value]
    return markdown.public(value) if isinstance(value, str) else value


def main() -> None:
    """Run ``python -m hub_cards.make``."""
    parser = argparse.ArgumentParser(prog="python -m hub_cards.make", description="Model cards.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if one is stale")
    parser.add_argument("--record", nargs=2, metavar=("RUN", "NAME"), help="take over a run")
    flags = parser.parse_args()
    if flags.check:
        sys.exit("".join(f"{path} is not up to date: make cards\n" for path in stale()) or None)
    if flags.record:
        record(Path(flags.record[0]), flags.record[1])
    for path, text in cards():
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
