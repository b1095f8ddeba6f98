"""The commands: ``train.py``, ``prune.py`` and ``timm-linop``."""

from __future__ import annotations

import functools
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from torch import nn

from .errors import Interrupted, LinOPError
from .processes import is_first, let_others_speak

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Print an error of ours as its one sentence, and leave with exit code 2 (75: it was stopped).

    Of several processes, one says it: the first, or whichever met it alone. What our log
    warns of, the first one says.
    """

    @functools.wraps(function)
    def command(argv: Sequence[str] | None = None) -> None:
        told, warnings.formatwarning = warnings.formatwarning, _as_one_line
        log = logging.getLogger(__package__)
        level = log.level
        if not is_first():
            log.setLevel(logging.ERROR)
        try:
            function(sys.argv[1:] if argv is None else argv)
        except Interrupted as error:  # they all agreed to
            if is_first():
                _print(error)
            sys.exit(TRY_AGAIN)
        except LinOPError as error:
            if not is_first():
                let_others_speak()
            _print(error)
            sys.exit(2)
        except RuntimeError:  # also torch's, where another process is gone
            let_others_speak()
            raise
        finally:
            warnings.formatwarning = told
            log.setLevel(level)

    return command


def _as_one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> str:
    return f"{category.__name__}: {message}\n"


def _print(error: LinOPError) -> None:
    name = type(error).__name__
    # Out of a DataLoader's worker an error comes with that worker's traceback before its sentence.
    sentence = str(error).split(f".{name}: ")[-1].strip()
    print(f"{name}: {sentence}", file=sys.stderr)


@_command
def train(argv: Sequence[str]) -> None:
    """Run ``train.py``."""
    from . import run
    from .flags import continued, parse
    from .recipe import Recipe

    recipe = parse(Recipe, argv, "train.py")
    output = run.train(continued(recipe, "train.py") if recipe.checkpoint.resume else recipe)
    if output is not None and (output / "slim").exists():
        _say_where(output)


@_command
def prune(argv: Sequence[str]) -> None:
    """Run ``prune.py``."""
    from . import prune_run
    from .flags import continued, parse
    from .recipe import PruneRecipe

    recipe = parse(PruneRecipe, argv, "prune.py")
    resumed = recipe.checkpoint.resume is not None
    _say_where(prune_run.prune(continued(recipe, "prune.py") if resumed else recipe))


def _say_where(output: Path) -> None:
    if is_first():
        slim = f"{output}/slim"
        load = f"timm.create_model('local-dir:{slim}', pretrained=True)"
        print(f"{slim} is written; after `import timm_linop`, {load} loads it")


@_command
def main(argv: Sequence[str]) -> None:
    """Run ``timm-linop``."""
    auto_cli(
        {
            "demo": demo,
            "audit": audit,
            "bench": bench,
            "plot": plot,
            "export": export,
            "push": push,
        },
        args=_as_jsonargparse(argv),
        prog="timm-linop",
    )


def _as_jsonargparse(argv: Sequence[str]) -> list[str]:
    """Let flags and runs be typed as one does.

    That is ``plot one two`` and ``push --dry-run``; jsonargparse would have ``plot '[one, two]'``
    and ``push --dry_run true``.
    """
    words, command = list(argv[1:]), list(argv[:1])
    if command != ["plot"]:
        return command + (_flags_of_timm(words) if words else [])
    runs, flags = [], command
    while words:
        if not words[0].startswith("-"):
            runs.append(words.pop(0))
        else:  # with its value, which is no run
            taken = 1 if "=" in words[0] else 2
            flags, words = flags + words[:taken], words[taken:]
    return [*flags, json.dumps(runs)] if runs else flags


def _flags_of_timm(words: Sequence[str]) -> list[str]:
    typed: list[str] = []
    for word, after in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        name = flag.replace("-", "_").removeprefix("__")
        typed.append(f"--{name}{equals}{value}" if flag.startswith("--") else word)
        bare = not equals and after.lower() not in ("true", "false")
        if flag.startswith("--") and bare and name in ("private", "create_pr", "dry_run", "hub"):
            typed.append("true")
    return typed


def demo(output: str = "runs/demo", seed: int = 42, hub: bool = False) -> None:
    """Run the whole journey on scikit-learn's digits, in a few minutes on two cores.

    Args:
        output: Folder to make a folder of this run in.
        seed: Seed of every step.
        hub: Push the result to a Hub on this machine, and reload it from there (in a checkout).
    """
    from . import demo as journey

    try:
        journey.demo(Path(output), seed, hub)
    except Interrupted as error:
        raise Interrupted("stopped, as asked; run again, the demo begins anew.") from error


def audit(model: str, rate: float = 3, pruned: str | None = None) -> None:
    """List every layer of a model, its chain, and why a layer is left alone.

    Args:
        model: timm architecture, local-dir:FOLDER or hf-hub:user/repo.
        rate: Expansion rate; 0 shows the slim layers.
        pruned: Slim folder, checkpoint or Hub id of that architecture.
    """
    from .expand import audit as audit_model

    print(audit_model(_model(model, rate, pruned)))


def bench(model: str, pruned: str | None = None, batch_size: int = 32) -> None:
    """Count a slim model's parameters and multiply-adds, and time it.

    Args:
        model: timm architecture, local-dir:FOLDER or hf-hub:user/repo.
        pruned: Slim folder, checkpoint or Hub id of that architecture.
        batch_size: Images per batch.
    """
    from timm.data import resolve_input_data_config

    from .bench import Cost, latency_ms, machine

    slim = _model(model, 0, pruned)
    size = resolve_input_data_config(slim)["input_size"]
    cost = Cost.of(slim, size)
    milliseconds = latency_ms(slim, size, batch_size=batch_size)
    print(
        f"{cost.parameters:,} parameters, {cost.macs:,} MACs, {milliseconds:.3f} ms per image "
        f"({'x'.join(map(str, size))}, batches of {batch_size})"
    )
    print(", ".join(f"{key} {value}" for key, value in machine(slim).items()))


def plot(runs: list[str], output: str | None = None) -> None:
    """Draw each run's training curves, and several runs against each other.

    Args:
        runs: Run folders, one after the other.
        output: Folder for the figures, with a folder in it for each run; without it they go to
            each run's figures/, and those of several runs to figures/ beside the first run.
    """
    from .gallery import draw

    for figure in draw([Path(run) for run in runs], Path(output) if output else None):
        print(figure)


def export(folder: str, formats: str = "onnx,pt2") -> None:
    """Write a slim folder's model for other runtimes, held against the model itself.

    Args:
        folder: Run folder or slim folder.
        formats: onnx (model.onnx), pt2 (model.pt2, torch.export), or both; those there are
            written anew.
    """
    from .export import export as export_model

    for path in export_model(folder, formats.split(",")):
        print(f"{path} is written")


def push(
    folder: str,
    repo: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    message: str | None = None,
    license: str | None = None,
    dry_run: bool = False,
) -> None:
    """Push a slim folder to the Hub, as one commit.

    Args:
        folder: Run folder or slim folder.
        repo: user/repo; created where it does not exist.
        private: Whether a new repo is private.
        revision: Branch, created where it does not exist; the default one where none is named.
        create_pr: Open a pull request instead.
        tag: A name for the commit.
        message: The commit's title.
        license: The model's licence as the Hub names it, where no teacher's card tells it.
        dry_run: Change nothing; print files, sizes and the card.
    """
    from .hub import Shipment
    from .hub import push as push_folder

    settings: dict[str, Any] = {"message": message} if message else {}
    settings |= {"private": private, "revision": revision, "create_pr": create_pr, "tag": tag}
    done = push_folder(folder, repo, license=license, dry_run=dry_run, **settings)
    print(done if isinstance(done, Shipment) else done.pr_url or done.commit_url)


def _model(name: str, rate: float, pruned: str | None) -> nn.Module:
    """Build a model by name, from a folder, or from the Hub."""
    from .architecture import known_architecture
    from .registry import build
    from .source import base_named_by

    if name.startswith(("local-dir:", "hf-hub:")):
        pruned, name = name, base_named_by(name, None)
    return build(known_architecture(name), pruned=pruned, rate=rate)
