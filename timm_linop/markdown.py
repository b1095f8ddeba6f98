"""How values are written in Markdown.

Names come from data sets and folders of others: what is written here reads as it was, and adds no
markup, no secret and no local path.
"""

from __future__ import annotations

import re
import shlex
from html import escape
from pathlib import PurePosixPath
from pprint import pformat
from urllib.parse import quote

from markupsafe import Markup

# Control characters, separators, lone surrogates, and what turns the direction of reading around.
_UNPRINTABLE = re.compile(
    r"[\x00-\x20\x7f-\xa0\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+"
)
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")
_SECRET = re.compile(
    r"\b(?:hf|api_org)_\w{8,}"
    r"|(--[\w.-]*(?:token|secret|password|api[_-]?key)[= ]|\w*(?:token|secret|password|api_?key)=)"
    r"""(?:'[^']*'|"[^"]*"|\S+)""",
    re.IGNORECASE,
)
# In characters: more would scroll sideways on a card.
_COMMAND_WIDTH = 66
# A local path, from where one may start (not inside a word, a relative path or a URL) to its last
# name. In the midst of a sentence a slash and a single name are no path.
_LOCAL_PATH = re.compile(
    r"""(?:(?<=[=:'"])|^|(?<=[\s,;(\[{])(?=[~\\]|\w+:|/[^/\\\s]+/))"""
    r"""(?:file://)?(?:~\w*|[a-z]:|\\)?[/\\](?=[^/\\\s])"""
    r"""(?:[^/\\'",;()\[\]{}=\s][^/\\'",;()\[\]{}=]*[/\\])*[^/\\'",;()\[\]{}=\s]*""",
    re.IGNORECASE,
)


def public(value: object) -> str:
    r"""Write a value on one line, without secrets; of a local path the last name stays.

    Example:
        >>> public("data=/home/ann/my pets/ of\n~/x.py, hf_aBcDeFgHiJ, https://hf.co/a/b")
        'data=my pets of x.py, ***, https://hf.co/a/b'
    """
    line = _UNPRINTABLE.sub(" ", str(value)).strip()
    line = _SECRET.sub(lambda found: f"{found[1] or ''}***", line)
    return _LOCAL_PATH.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], line)


def text(value: object) -> Markup:
    r"""Write a value as plain text inside a line or a table's cell; Markup stays what it is.

    Raises:
        TypeError: The value is None: nobody wants to read that.

    Example:
        >>> print(text("a|b <b>*bold*</b> snake_case"))
        a\|b &lt;b&gt;\*bold\*&lt;/b&gt; snake_case
    """
    if isinstance(value, Markup):
        return value
    if value is None:
        raise TypeError("The card's template prints a value that is not known; guard it by an if.")
    line = _MARKUP.sub(r"\\\g<0>", escape(public(value), quote=False))
    # Nor does an address become a link by itself.
    return Markup(line.replace("://", ":&#47;/").replace("www.", "www&#46;"))


def code(value: object) -> Markup:
    r"""Write a value as code inside a line or a table's cell.

    Example:
        >>> print(code("stem.conv"), code("a`|b"))
        `stem.conv` <code>a\`\|b</code>
    """
    line = public(value)
    return Markup(f"<code>{text(line)}</code>" if re.search("[`|]|^$", line) else f"`{line}`")


def literal(value: object) -> Markup:
    r"""Write a string, or a tuple of them as a list, in Python source.

    Example:
        >>> print(literal(("cat", "do'g <!--")))
        ['cat', "do'g \x3c!--"]
    """
    plain = list(map(public, value)) if isinstance(value, tuple) else public(value)
    return Markup(pformat(plain, width=88, compact=True).replace("<", r"\x3c"))


def link(path: str) -> Markup:
    """Write the address of a file beside the card.

    Example:
        >>> print(link("figures/my curves.png"), link("/home/ann/curves.png"))
        figures/my%20curves.png curves.png
    """
    return Markup(quote(str(PurePosixPath(public(path).replace("\\", "/"))).lstrip("/")))


def command(line: str) -> Markup:
    r"""Write a command line, its secrets and local paths taken out, over as many lines as it takes.

    Example:
        >>> line = "prune.py --dataset digits --weights runs/dense --batch-size 64 --ratio 0.7"
        >>> print(command(line))
        prune.py --dataset digits --weights runs/dense --batch-size 64 \
            --ratio 0.7
    """
    lines = [""]
    # A flag and its values stay together.
    for part in re.split(r" (?=--)", command_line(line)):
        if lines[-1] and len(f"{lines[-1]} {part}") > _COMMAND_WIDTH:
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {part}" if lines[-1] else part
    return Markup(" \\\n".join(lines))


def command_line(line: str) -> str:
    """Take secrets and local paths out of a command line.

    Example:
        >>> command_line("/usr/bin/python train.py --data '/home/ann/my pets' --token abc")
        "python train.py --data 'my pets' --token ***"
    """
    try:
        arguments = shlex.split(line)
    except ValueError:  # a quote that is never closed
        arguments = line.split()
    return public(shlex.join(map(public, arguments)))


def attribute(value: object) -> Markup:
    """Write a value between the quotes of an HTML attribute.

    Example:
        >>> print(attribute('5" <tall>'))
        5&quot; &lt;tall&gt;
    """
    return Markup(escape(public(value), quote=True))


def count(number: float) -> Markup:
    """Write a large number in four figures.

    Example:
        >>> print(count(812), count(215_642), count(4_089_184_256))
        812 215.6K 4.089G
    """
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if number >= scale:
            return Markup(f"{number / scale:.4g}{unit}")
    return Markup(number)


def duration(seconds: float) -> Markup:
    """Write a time in two units at most.

    Example:
        >>> print(duration(8.25), duration(125), duration(7500), sep=", ")
        8.25 s, 2 min 5 s, 2 h 5 min
    """
    minutes = int(seconds // 60)
    if minutes >= 60:
        return Markup(f"{minutes // 60} h {minutes % 60} min")
    return Markup(f"{minutes} min {int(seconds % 60)} s" if minutes else f"{seconds:.3g} s")
