"""Where images come from: what the user writes, and one reader per kind of source."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from timm_linop.data.arrays import read_digits, read_idx_folder
from timm_linop.data.splits import Splits, split_called
from timm_linop.data.stream import Stream
from timm_linop.errors import DataError, close_names


def read_source(spec: str, *, streaming: bool = False) -> tuple[str, Splits]:
    """Read what `load_data` takes as ``spec``; give its public name and its splits as stored."""
    kind, colon, rest = spec.partition(":")
    if streaming and kind in ("digits", "imagefolder", "idx"):
        raise DataError(
            f"{spec} is read from this machine, so there is nothing to stream; leave --streaming "
            "out, or name a Hub dataset or parquet:GLOB."
        )
    if kind == "parquet" and rest:
        return _read_parquet(rest, streaming)
    if kind == "digits" and not colon:
        return read_digits()
    if kind in _READERS and rest:
        return _READERS[kind](rest)
    if spec and Path(spec).expanduser().is_dir():
        raise DataError(f"{spec!r} is a folder here: write imagefolder:{spec} or idx:{spec}.")
    # A bare name may be one of the Hub's old ones; with a colon it is a mistyped kind of source.
    if re.fullmatch(r"[\w.-]+/[\w.-]+(:.+)?|[\w.-]+", spec) and kind not in _KINDS:
        return _read_hub(kind, rest or None, streaming)
    raise DataError(
        f"{spec!r} names no data: give digits, imagefolder:DIR, idx:DIR, parquet:GLOB, or a Hub "
        f"id as owner/name or owner/name:config.{close_names(kind, _KINDS)}"
    )


def _read_image_folder(place: str) -> tuple[str, Splits]:
    """Read ``class/image`` files, in one tree or in one per split.

    The splits are found here, since `datasets` takes a class called "train" or "test" for one.
    """
    folder = Path(place).expanduser().resolve()
    if not folder.is_dir():
        raise DataError(f"imagefolder:{place}: there is no such folder.")
    inside = sorted(sub for sub in folder.iterdir() if sub.is_dir() and split_called(sub.name))
    splits = {sub.name: sub for sub in inside if _holds_a_split(sub)} or {"train": folder}
    files = {split: f"{glob.escape(str(sub))}/**" for split, sub in splits.items()}
    hint = "it should hold DIR/class/image.png or DIR/train/class/image.png"
    loaded = _load(f"imagefolder:{place}", hint, "imagefolder", data_files=files)
    if any(split.column_names == ["image"] for split in loaded.values()):
        raise DataError(
            f"imagefolder:{place} has images, but does not tell two classes: {hint}, with every "
            "image at the same depth."
        )
    return f"imagefolder:{folder.name}", loaded


def _holds_a_split(folder: Path) -> bool:
    """Tell a split, which holds folders of classes or a metadata file, from a class."""
    return any(sub.is_dir() or sub.stem == "metadata" for sub in folder.iterdir())


def _read_parquet(pattern: str, streaming: bool) -> tuple[str, Splits]:
    """Read parquet files, each into the split that its name begins with."""
    where, name = f"parquet:{pattern}", "parquet:" + "/".join(Path(pattern).parts[-2:])
    files = _parquet_files(pattern)
    hint = "are these parquet files with the same columns?"
    escaped = {split: [glob.escape(file) for file in found] for split, found in files.items()}
    splits = _load(where, hint, "parquet", data_files=escaped, streaming=streaming)
    if not streaming:
        return name, splits
    sizes = {split: sum(map(_rows_of, found)) for split, found in files.items()}
    return name, _streams(name, splits, sizes)


def _parquet_files(pattern: str) -> dict[str, list[str]]:
    """Find the files of each split."""
    matches = glob.glob(str(Path(pattern).expanduser()), recursive=True)  # noqa: PTH207, absolute
    found = sorted(file for file in matches if Path(file).is_file())
    if not found:
        raise DataError(f"parquet:{pattern} matches no file; try parquet:DIR/*.parquet.")
    files: dict[str | None, list[str]] = {}
    for file in found:
        split = split_called(re.split("[^A-Za-z]", Path(file).name)[0])
        files.setdefault(split, []).append(str(Path(file).resolve()))
    if len(files) > 1 and None in files:
        raise DataError(
            f"parquet:{pattern} matches {files[None][0]} beside files called after splits; "
            "narrow the pattern, or begin its name with train, validation or test."
        )
    return {split or "train": names for split, names in files.items()}


def _rows_of(file: str) -> int:
    """Rows of a parquet file, from its last bytes."""
    try:
        return int(pyarrow.parquet.read_metadata(file).num_rows)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file} cannot be read: {error}; fetch or write it again.") from error


def _read_hub(repo: str, config: str | None, streaming: bool) -> tuple[str, Splits]:
    """Read a dataset of the Hub, or of its local cache when there is no connection."""
    where = f"{repo}:{config}" if config else repo
    hint = "check the id and its configs on hf.co/datasets, `hf auth login` if it is private"
    close = close_names(repo, ("digits",))
    splits = _load(f"the Hub dataset {where}", hint + close, repo, config, streaming=streaming)
    if not streaming:
        return repo, splits
    told = {split: (rows.info.splits or {}).get(split) for split, rows in splits.items()}
    return repo, _streams(repo, splits, {s: info and info.num_examples for s, info in told.items()})


def _streams(name: str, splits: Splits, sizes: Mapping[str, int | None]) -> dict[str, Stream]:
    """Join streams with what is known of them before they are read."""
    streams = {}
    for split, rows in splits.items():
        size, where = sizes[split], f"the {split} split of {name}"
        if rows.features is None or size is None:
            unknown = "its columns" if rows.features is None else "how many images it has"
            raise DataError(
                f"{where} cannot be streamed: its dataset card does not tell {unknown}; take "
                "a dataset with `dataset_info` in its card, or train without --streaming."
            )
        streams[split] = Stream(rows, size, where)
    return streams


def _load(where: str, hint: str, *args: Any, **kwargs: Any) -> Splits:
    """Call `datasets.load_dataset`; whatever it raises becomes one sentence before its cause."""
    try:
        loaded = datasets.load_dataset(*args, **kwargs)
    except Exception as error:  # its builders let through errors of every library below them
        why = str(error.__cause__ or error).strip().partition("\n")[0]
        raise DataError(f"{where} cannot be loaded: {why} ({hint})") from error
    return dict(loaded)


_READERS: dict[str, Callable[[str], tuple[str, Splits]]] = {
    "imagefolder": _read_image_folder,
    "idx": read_idx_folder,
}
_KINDS = ("digits", "parquet", *_READERS)
