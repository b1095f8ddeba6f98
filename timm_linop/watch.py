"""What a person sees of a run: a bar on a terminal, one line an epoch everywhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType

from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_trackio_available, tqdm
from torch import Tensor

from .errors import RecipeError, close_names
from .flags import flat
from .recipe import Recipe, WatchConfig
from .resume import Progress

_TRACKERS = {"tensorboard": is_tensorboard_available, "trackio": is_trackio_available}


class Bar:
    """A progress bar over an epoch's images: losses, images a second, time left; on terminals only.

    Args:
        epoch: Epochs before this one.
        epochs: Epochs in all.
        images: Images of this epoch, over all processes.
    """

    def __init__(self, epoch: int, epochs: int, images: int) -> None:
        self._bar = tqdm(
            total=images,
            desc=f"epoch {epoch + 1}/{epochs}",
            unit="img",
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def show(self, losses: Tensor, images: int) -> None:
        """Move on by a step's images.

        Args:
            losses: As `Losses.values` gives them.
            images: Of all processes.
        """
        if self._bar.disable:
            return
        _, task, sp, kd = losses.tolist()
        shown = {
            "task": f"{task:.3f}",
            "sp": f"{sp:.2e}" if sp else "",
            "kd": f"{kd:.3f}" if kd else "",
        }
        self._bar.set_postfix({name: loss for name, loss in shown.items() if loss}, refresh=False)
        self._bar.update(images)


def line(row: Mapping[str, float], epochs: int, before: Progress | None = None) -> str:
    """Say how an epoch went, and when the last one will be done.

    Args:
        row: As metrics.csv has it.
        epochs: Epochs in all.
        before: Where the training began that tells how long the others will take; None is the
            run's own beginning.

    Example:
        >>> row = {"epoch": 2, "task_loss": 0.7, "sp_loss": 1e-4, "kd_loss": 0.0, "lr": 0.01}
        >>> row |= {"validation_accuracy": 91.5, "seconds": 60.0}
        >>> line(row, epochs=5)
        'epoch 2/5: task 0.700, SP 1.00e-04, validation 91.50 %, lr 0.01, 60 s; 0:01:30 to go'
    """
    sp = f", SP {row['sp_loss']:.2e}" if row["sp_loss"] else ""
    kd = f", KD {row['kd_loss']:.3f}" if row["kd_loss"] else ""
    first, left = before or Progress(), epochs - row["epoch"]
    each = (row["seconds"] - first.seconds) / (row["epoch"] - first.epoch)
    to_go = timedelta(seconds=round(each * left))
    return (
        f"epoch {row['epoch']}/{epochs}: task {row['task_loss']:.3f}{sp}{kd}, "
        f"validation {row['validation_accuracy']:.2f} %, lr {row['lr']:.2g}, "
        f"{row['seconds']:.0f} s" + (f"; {to_go} to go" if left else "")
    )


def trackers(settings: WatchConfig) -> list[str]:
    """Check that what --track names is there.

    Args:
        settings: Its ``track``.

    Returns:
        The names, as accelerate's ``log_with`` takes them.

    Raises:
        RecipeError: If one is unknown or not installed.

    Example:
        >>> trackers(WatchConfig(track=("tensorbord",)))
        Traceback (most recent call last):
        ...
        timm_linop.errors.RecipeError: track='tensorbord': ... Close names: 'tensorboard'.
    """
    for name in settings.track:
        if name not in _TRACKERS:
            raise RecipeError(
                f"track={name!r}: use {' or '.join(_TRACKERS)}." + close_names(name, _TRACKERS)
            )
        if not _TRACKERS[name]():
            raise RecipeError(f"track={name!r}: it is not installed; pip install {name}.")
    return list(settings.track)


def start(recipe: Recipe, accelerator: Accelerator) -> None:
    """Open the trackers, and tell them the recipe.

    Args:
        recipe: An effective one.
        accelerator: Made with `trackers`.
    """
    if recipe.watch.track:
        # TensorBoard takes plain values only.
        plain = {k: v for k, v in flat(recipe).items() if isinstance(v, bool | int | float | str)}
        name = recipe.run.output or ""
        accelerator.init_trackers(name.strip("/").replace("/", "-"), plain)
