"""What goes in and what is left behind: images, output, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataConfig:
    """Images and how they are fed.

    Attributes:
        dataset: digits, imagefolder:DIR, idx:DIR, parquet:GLOB, or a Hub dataset id.
        image_column: Column of the images, where it is not plain.
        label_column: Column of the labels, where it is not plain.
        streaming: Read a Hub dataset or parquet files while training, without a copy on the disk.
        mean: Per-channel mean to normalise with; None takes the model's own.
        std: Per-channel standard deviation, likewise.
        interpolation: How images are resized (bicubic, bilinear...); None takes the model's own.
        crop_pct: Part of the image that evaluation keeps; None takes the model's own.
        batch_size: Images per step and process.
        workers: Processes that load images.
    """

    dataset: str = "digits"
    image_column: str | None = None
    label_column: str | None = None
    streaming: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    batch_size: int = 128
    workers: int = 0


@dataclass(frozen=True)
class RunConfig:
    """Where it goes.

    Attributes:
        output: Folder for everything the run leaves; it must be new or empty. None is
            runs/slim, runs/pruned (prune.py), or nowhere (--eval-only).
        seed: Seed of weights, factors, shuffling and augmentation.
        push_to_hub: Repo to push the slim model to, user/repo.
        hub_private: Create that repo private.
        hub_license: The model's licence as the Hub names it, where no teacher's card tells it.
    """

    output: str | None = None
    seed: int = 42
    push_to_hub: str | None = None
    hub_private: bool = False
    hub_license: str | None = None


@dataclass(frozen=True)
class CheckpointConfig:
    """States to go on from.

    Attributes:
        resume: Run folder to go on with after any stop; its own recipe holds, so no other flags.
        checkpoint_every: Steps between two checkpoints; 0 writes them at the ends of epochs only.
        checkpoint_hist: Newest checkpoints to keep.
    """

    resume: str | None = None
    checkpoint_every: int = 0
    checkpoint_hist: int = 2


@dataclass(frozen=True)
class SnapshotConfig:
    """What is pushed on the way.

    Attributes:
        push_every: Epochs between two pushes of the slim model as it is then, to the branch
            "training" of --push-to-hub; 0 pushes the result only.
    """

    push_every: int = 0


@dataclass(frozen=True)
class WatchConfig:
    """What is shown of a run, or tried instead of it.

    Attributes:
        track: Where metrics go beside metrics.csv: tensorboard, trackio, or both.
        eval_only: Evaluate --pruned (or --model --pretrained) on this split, train, validation or
            test, none of its images varied, and leave; bare, validation.
        dry_run: Tell layers, chains, parameters, memory and multiply-adds, do two steps and leave.
        compare: Finished runs from the same pruned weights and data (vanilla fine-tuning...),
            which the card shows beside this one.
    """

    track: tuple[str, ...] = ()
    eval_only: str | None = field(default=None, metadata={"bare": "validation"})
    dry_run: bool = False
    compare: tuple[str, ...] = ()
