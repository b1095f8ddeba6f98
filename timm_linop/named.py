"""The files that timm's own factory names by ``hf-hub:`` and ``local-dir:``, checked in time.

It reads config.json by itself, and then calls an entrypoint of ours, which it tells where the
weights lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from .checkpoint import CONFIG, WEIGHTS, check_weights_file, read_config
from .download import fetch
from .errors import CheckpointError


def check_named_config(cfg: Mapping[str, Any], cache_dir: Any) -> dict[str, Any]:
    """Check the config.json that timm's factory has read.

    One that tells a thing twice, is of a newer version, or is far too large or too deep, is refused
    as it is everywhere else.

    Args:
        cfg: The ``pretrained_cfg`` that timm's factory made of it.
        cache_dir: Where the Hub's client keeps its files, as timm was told.

    Returns:
        Where alone timm is to read the weights, as entries of its ``pretrained_cfg``.

    Raises:
        CheckpointError: If it is not what `timm_linop.save` writes.

    Example:
        >>> check_named_config({"source": "local-dir", "file": "/nowhere"}, None)
        {'source': 'local-dir', 'file': '/nowhere'}
    """
    if cfg["source"] == "local-dir":
        path = Path(str(cfg.get("file"))) / CONFIG
        if path.is_file():
            read_config(path)
        return {"source": "local-dir", "file": str(path.parent)}
    repo, _, revision = str(cfg.get("hf_hub_id")).partition("@")
    cached = try_to_load_from_cache(repo, CONFIG, cache_dir, revision or None)
    if isinstance(cached, str):
        read_config(Path(cached))
        # The branch may have moved since: the weights are to be those of the same commit.
        revision = Path(cached).parent.name
    where = f"{repo}@{revision}" if revision else repo
    # Where a repo has no such file, timm would take a pickled one.
    return {"source": "hf-hub", "hf_hub_id": where, "hf_hub_filename": WEIGHTS}


def check_named_weights(cfg: Mapping[str, Any], cache_dir: Any) -> None:
    """Check the weights that timm is going to read; those of a repo are downloaded.

    Args:
        cfg: What `check_named_config` gave.
        cache_dir: Where the Hub's client keeps its files, as timm was told.

    Raises:
        CheckpointError: If they are missing, damaged or too large.
        HubError: If the Hub does not hand them out.

    Example:
        >>> check_named_weights({"source": "local-dir", "file": "/nowhere"}, None)
        Traceback (most recent call last):
        ...
        timm_linop.errors.CheckpointError: /nowhere holds no model.safetensors...
    """
    if cfg["source"] == "hf-hub":
        folder = fetch(cfg["hf_hub_id"], cache_dir=cache_dir)
    else:
        folder = Path(cfg["file"])
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} holds no {WEIGHTS}, and nothing else is read; write it with "
            "timm_linop.save()."
        )
    check_weights_file(folder / WEIGHTS)
