"""Names that come from strangers: on a card they stay names, and paths and tokens stay at home."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

import pytest

from tests.test_card import DIGITS, FULL, LINOP, parts, results, snippet, table
from timm_linop import markdown
from timm_linop.card import Dataset, Figure, Pruning, free_text, render

HOSTILE = [
    "a|b",
    "`code`",
    "``` fence",
    "<script>alert(1)</script>",
    "<!-- /free: notes -->",
    "-->",
    "[me](javascript:alert(1))",
    "![x](http://evil/x.png)",
    "https://evil.example",
    "www.evil.example",
    "line\nbreak\n# Heading",
    "\n---\nlicense: mit\n---\n",
    "- item",
    "key: value",
    "*bold* _it_ ~~gone~~ $$x$$",
    "{{ data }} {% raw %}",
    "quote ' and \" and \\",
    "\x00\x1b[31m\u202ereversed\ud800",
    "日本語 ñ 😀",
    "",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_a_name(name):
    data = replace(
        FULL,
        name=name or "unnamed",
        architecture=name,
        license=name or None,
        teacher=name,
        tags=(name or "tag",),
        dataset=Dataset(name, (name, "cat"), {name: 5}, name),
        results=(replace(LINOP, arm=name), LINOP),
        pruning=Pruning(name, 4, 2, 0.5, {name: (4, 2)}),
        figures=(Figure(f"{name}.png", name),),
        hyperparameters={f"k{name}": name},
        defaults={f"k{name}": name},
        machine={"cpu": name},
        versions={"torch": name},
        command=f"train.py {name}",
    )
    text = render(data)
    about, body = parts(text)
    plain = re.sub(r"[\x00-\x20\u202e\ud800]+", " ", name).strip()
    assert about["model-index"][0]["name"] == (plain or "unnamed")
    assert about["model-index"][0]["results"][0]["dataset"]["name"] == plain
    assert about.get("license") == (plain or None)
    assert set(about) <= {*parts(render(FULL))[0]}
    rows = results(text)
    assert {len(row) for row in rows} == {7}
    assert len(rows) == 4
    assert {len(row) for row in table(text, "| Layer |")} == {3}
    known = re.findall(r"^#+ .*", parts(render(FULL))[1], re.M)
    assert re.findall(r"^#+ .*", body, re.M)[1:] == known[1:]
    assert re.findall(r"^```.*", body, re.M) == re.findall(r"^```.*", render(FULL), re.M)
    assert free_text(text) == {"notes": "", "limits": ""}
    ast.parse(snippet(text))
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", body, flags=re.M | re.S)
    tags = set(re.findall(r"<[!/\w-]+", prose)) - {"<!--"}
    assert tags <= {"<details", "</details", "<summary", "</summary", "<code", "</code"}
    links = re.findall(r"(?<!\\)\]\((.*?)\)", prose)
    ours = ("https://github.com/huggingface/", "https://huggingface.co/timm/")
    assert all(to.startswith(ours) or not re.match(r"/|\w+:", to) for to in links), links


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("/home/ann/data/cats", "cats"),
        ("C:\\Users\\ann\\cats", "cats"),
        ("\\\\server\\share\\cats", "cats"),
        ("~/data/cats/", "cats"),
        ("file:///home/ann/cats", "cats"),
        ("local-dir:/home/ann/my runs/slim", "local-dir:slim"),
        ("('/data/a b/x', '/data/y')", "('x', 'y')"),
        ("C:\\", "C:\\"),
        ("runs/dense", "runs/dense"),
        ("../runs", "../runs"),
        ("https://huggingface.co/me/it", "https://huggingface.co/me/it"),
        ("hf-hub:me/it", "hf-hub:me/it"),
        ("a /b, c", "a /b, c"),
        ("(/data/x y/z.csv)", "(z.csv)"),
        ("12 images/s and 3 / 4", "12 images/s and 3 / 4"),
        ("hf_abcdefghijKLMNOP", "***"),
        ("HF_TOKEN=s3cret", "HF_TOKEN=***"),
        ("--hub.token s3cret --x", "--hub.token *** --x"),
        ("--num_tokens 5", "--num_tokens 5"),
        ("the token was lost", "the token was lost"),
    ],
)
def test_no_secret_and_no_local_path_is_told(written, read):
    assert markdown.public(written) == read


def test_a_card_tells_no_local_path_anywhere():
    home = "/home/anna/secret place"
    data = replace(
        FULL,
        repo=None,
        folder=f"{home}/slim",
        teacher=f"{home}/dense",
        dataset=replace(DIGITS, name=f"{home}/cats"),
        figures=(Figure(f"{home}/curves.png", f"as {home}/curves.png shows"),),
        hyperparameters={"data.root": f"{home}/cats", "hub.token": "hf_abcdefghijkl"},
        defaults={"run.folders": (f"{home}/a", f"{home}/b")},
        command=f"'{home}/bin/python' train.py --data '{home}/cats' --token=abc1 --hub-token abc2",
    )
    text = render(data)
    assert not re.search("anna|secret place|hf_abc|abc1|abc2", text)
    assert "python train.py --data cats" in text
    assert "(curves.png)" in text
    assert '"local-dir:slim"' in text.replace("'", '"')


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("figures/a b.png", "figures/a%20b.png"),
        ("/home/anna/a.png", "a.png"),
        ("//evil.example/a.png", "evil.example/a.png"),
        ("javascript:alert(1)", "javascript%3Aalert%281%29"),
        ("figures\\a.png", "figures/a.png"),
    ],
)
def test_a_figure_lies_beside_the_card(path, address):
    assert markdown.link(path) == address
