"""Look at a model card as a web page: Markdown to HTML, and screenshots where Chromium is.

    python docs/render_card.py hub_cards/linop-digits/README.md --output /tmp/page

writes ``card.html`` with the card's figures beside it, and with a Chromium on the PATH
``wide.png`` (1000 px) and ``narrow.png`` (400 px). It needs the ``dev`` extra.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

WIDTHS = {"wide": 1000, "narrow": 400}
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# What the Hub does to a card, roughly: a column of text, tables and code that scroll by themselves.
_STYLE = """
body { margin: 0; background: #fff; color: #24292f; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 780px; margin: 0 auto; padding: 16px; overflow-wrap: break-word; }
h1, h2 { line-height: 1.25; border-bottom: 1px solid #d8dee4; padding-bottom: .3em; }
code, pre { font: 85%/1.45 ui-monospace, "DejaVu Sans Mono", monospace; background: #f6f8fa; }
code { padding: .2em .4em; border-radius: 6px; } pre code { padding: 0; font-size: 100%; }
pre { padding: 16px; overflow-x: auto; border-radius: 6px; }
table { display: block; overflow-x: auto; border-collapse: collapse; width: max-content;
  max-width: 100%; }
td, th { border: 1px solid #d0d7de; padding: 6px 13px; } img { max-width: 100%; }
"""


def to_html(card: str) -> str:
    r"""Turn a card into a page; its metadata are not shown, as on the Hub.

    Args:
        card: Markdown with a YAML head.

    Example:
        >>> "<h1>Tiny</h1>" in to_html("---\nlicense: mit\n---\n\n# Tiny\n")
        True
    """
    text = card.split("\n---\n", 1)[1] if card.startswith("---\n") else card
    # As on the Hub: GitHub's tables, and HTML such as <details>.
    body = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)
    title = next((line[2:] for line in text.splitlines() if line.startswith("# ")), "card")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" '
        f'content="light"><style>{_STYLE}</style></head><body><main>{body}</main></body></html>'
    )


def render(card: Path, output: Path) -> list[Path]:
    """Write a card's page, and its screenshots where a browser is installed.

    Args:
        card: The README.md; its figures are taken from beside it.
        output: Folder of the page.

    Returns:
        What was written: the page, then the screenshots.
    """
    output.mkdir(parents=True, exist_ok=True)
    page = output / "card.html"
    page.write_text(to_html(card.read_text(encoding="utf-8")), encoding="utf-8")
    if (card.parent / "figures").is_dir():
        shutil.copytree(card.parent / "figures", output / "figures", dirs_exist_ok=True)
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    shots = WIDTHS if browser else {}
    for name, width in shots.items():
        _shoot(str(browser), page, output / f"{name}.png", width)
    return [page, *(output / f"{name}.png" for name in shots)]


def _shoot(browser: str, page: Path, out: Path, width: int) -> None:
    """Take a picture of a page in a frame of that width: a window of 400 px is none to Chromium."""
    frame = page.with_name(f"frame-{width}.html")
    frame.write_text(
        f'<body style="margin:0"><iframe src="{page.name}" width="{width}" height="8000" '
        'style="border:0"></iframe></body>',
        encoding="utf-8",
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    shot = [
        f"--window-size={max(width, 600)},8000",
        f"--screenshot={out}",
        frame.resolve().as_uri(),
    ]
    subprocess.run([browser, *flags, *shot], check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("card", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args()
    for path in render(flags.card, flags.output):
        print(path)
