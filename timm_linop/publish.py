"""What a run sends to the Hub: checks before it, snapshots on the way, the result in the end."""

from __future__ import annotations

import copy
import random
import shlex
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from .architecture import base_of, forget_caches
from .card import CardData, Dataset
from .data import ImageData
from .errors import HubError, LinOPError
from .expand import contract, is_expanded
from .hub import check_metadata, check_write_access, push, save
from .recipe import PruneRecipe, Recipe

BRANCH = "training"


def check_push(recipe: Recipe | PruneRecipe) -> None:
    """Find out what would stop a push, before hours are spent on what is to be pushed.

    Args:
        recipe: Its run and distill groups are read.

    Raises:
        HubError: If there is no write access, or the Hub would refuse the card.

    Example:
        >>> check_push(Recipe())
    """
    run = recipe.run
    tried = isinstance(recipe, Recipe) and (recipe.watch.dry_run or recipe.watch.eval_only)
    if run.push_to_hub and not tried:
        check_write_access(run.push_to_hub, private=run.hub_private)
        base = recipe.distill.teacher_id if isinstance(recipe, Recipe) else None
        check_metadata(run.push_to_hub, base_model=base, license=run.hub_license)


def push_result(recipe: Recipe | PruneRecipe, output: Path) -> HubError | None:
    """Push a finished run where the recipe asks for it.

    Args:
        recipe: Its run group is read.
        output: The run folder, whole.

    Returns:
        None, or why it failed, with the command that pushes it later: the run itself is done.

    Example:
        >>> push_result(Recipe(), Path("runs/slim")) is None
        True
    """
    run = recipe.run
    if not run.push_to_hub:
        return None
    try:
        done = push(output, run.push_to_hub, private=run.hub_private, license=run.hub_license)
        print(f"pushed to {run.push_to_hub}: {getattr(done, 'commit_url', '')}")
    except LinOPError as error:
        command = ["timm-linop", "push", str(output), run.push_to_hub]
        command += ["--private"] if run.hub_private else []
        command += ["--license", run.hub_license] if run.hub_license else []
        later = f"The run itself is whole, in {output}; push it later with: {shlex.join(command)}"
        return HubError(f"{error} {later}")
    return None


@dataclass(frozen=True)
class Snapshots:
    """Pushes the slim model of every so many epochs to a branch; training never notices.

    Args:
        recipe: Its checkpoint group says how often, its run group where to.
        arm: How the model is made.
        data: What it is trained on.
        config: Input size, mean and std.
        accelerator: Where it runs.
    """

    recipe: Recipe
    arm: str
    data: ImageData
    config: Mapping[str, Any]
    accelerator: Accelerator

    def __call__(self, epoch: int, whole: Callable[[], nn.Module]) -> None:
        """Push where it is time.

        Args:
            epoch: Epochs done.
            whole: Gives the model as it is now; asked on every process, as it may be in shards.
        """
        every = self.recipe.snapshots.push_every
        if not every or epoch % every:
            return
        with undisturbed():
            model = whole()
            if self.accelerator.is_main_process:
                self._try(model, epoch)

    def _try(self, model: nn.Module, epoch: int) -> None:
        repo = self.recipe.run.push_to_hub
        try:
            with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # told before training
                self._push(model, epoch, Path(scratch) / "slim")
        except Exception as error:  # whatever it is, hours of training are worth more
            warnings.warn(
                f"epoch {epoch} is not on {repo}: {error} Training goes on.", stacklevel=2
            )
        else:
            self.accelerator.print(f"epoch {epoch} is on {repo}, branch {BRANCH}")

    def _push(self, model: nn.Module, epoch: int, folder: Path) -> None:
        run = self.recipe.run
        repo, slim = run.push_to_hub or "", copy.deepcopy(forget_caches(model)).eval()
        if is_expanded(slim):
            contract(slim)
        # In the title, as notes would outlive this epoch: they are the owner's.
        name = f"{repo.split('/')[-1]}, unfinished: epoch {epoch}"
        card = CardData(
            name,
            base_of(slim),
            self.arm,
            repo=repo,
            teacher_id=self.recipe.distill.teacher_id,
            dataset=Dataset(self.data.name, tuple(self.data.class_names)),
            input_size=tuple(self.config["input_size"]),
            mean=tuple(self.config["mean"]),
            std=tuple(self.config["std"]),
        )
        config, names = dict(self.config), self.data.class_names
        save(slim, folder, class_names=names, data_config=config, card=card)
        license, message = run.hub_license, f"Epoch {epoch}"
        push(
            folder, repo, private=run.hub_private, revision=BRANCH, message=message, license=license
        )


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave every global generator of random numbers as it was.

    Example:
        >>> state = torch.get_rng_state()
        >>> with undisturbed():
        ...     _ = torch.rand(3)
        >>> torch.equal(torch.get_rng_state(), state)
        True
    """
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
