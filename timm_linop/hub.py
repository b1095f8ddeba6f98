"""Ship a slim model: a folder in timm's own layout, and one atomic commit to the Hub."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
)
from huggingface_hub.errors import LocalTokenNotFoundError
from timm.models import save_for_hf
from torch import nn

from .architecture import PREFIX, forget_caches, model_args_of
from .card import CardData, render
from .divergence import broken_parameter
from .drafts import draft_of
from .errors import CheckpointError, ExpansionError, HubError, LinOPError, OutputFolderError
from .expand import is_expanded
from .proof import prove
from .source import CONFIG, WEIGHTS, read_config, read_weights, slim_folder
from .structure import Structure

CARD, FIGURES = "README.md", "figures"


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    data_config: dict[str, Any] | None = None,
    card: CardData | None = None,
    figures: Sequence[Path] = (),
) -> Path:
    """Write a slim model as a folder that timm loads by name.

    The folder holds config.json (architecture ``linop_<base>``, the structure, ``rate: 0``),
    model.safetensors, README.md and figures/. It appears whole or not at all.

    Args:
        model: A slim (or dense) timm model, contracted.
        folder: Where to; new or empty.
        class_names: Names of the classes, in order.
        data_config: Image size, mean and std it was trained with, as timm's transforms take them;
            None takes the model's own.
        card: What the card tells; None tells what the model itself does.
        figures: PNG files to put beside it.

    Returns:
        The folder.

    Raises:
        ExpansionError: If the model is expanded.
        OutputFolderError: If the folder holds something already, or another process was faster.
        WriteError: If the disk is full, or does not let it be written.
        StructureError: If the model is no slim form of its timm architecture.
        CheckpointError: If a weight is NaN or infinite.

    Example:
        >>> import timm, tempfile
        >>> slim = timm.create_model("test_resnet", num_classes=3)
        >>> folder = save(slim, Path(tempfile.mkdtemp()) / "slim", class_names=["a", "b", "c"])
        >>> timm.create_model(f"local-dir:{folder}", pretrained=True).num_classes
        3
    """
    folder = Path(folder)
    _refuse_expanded(model, "saved")
    _refuse_broken(model)
    check_output(folder)
    structure = Structure.of(forget_caches(model))
    slim: Any = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format)
    slim.pretrained_cfg = {**slim.pretrained_cfg, "architecture": PREFIX + structure.base}
    slim._model_args = model_args_of(model)
    slim.register_state_dict_post_hook(_each_tensor_for_itself)
    with draft_of(folder) as draft:
        save_for_hf(
            slim,
            str(draft),
            model_config={"label_names": list(class_names)} if class_names else None,
            model_args={"pruned": structure.to_dict(), "rate": 0, **prove(model)},
            safe_serialization=True,
            data_config=data_config,
        )
        card = card or CardData(
            folder.name, structure.base, "pruned" if structure.shapes else "dense"
        )
        (draft / CARD).write_text(render(card), encoding="utf-8")
        for figure in figures:
            (draft / FIGURES).mkdir(exist_ok=True)
            shutil.copy(figure, draft / FIGURES / figure.name)
    return folder


def _each_tensor_for_itself(
    _module: nn.Module, state: dict[str, Any], _prefix: str, _metadata: Any
) -> None:
    """Copy what stands under two names in a state dict, which safetensors would refuse."""
    seen: set[int] = set()
    for name, tensor in state.items():
        if tensor.data_ptr() in seen:
            state[name] = tensor.clone()
        seen.add(tensor.data_ptr())


def check_output(folder: Path) -> None:
    """Refuse an output folder that holds something already.

    Args:
        folder: New or empty.

    Raises:
        OutputFolderError: If it is neither, or a file.

    Example:
        >>> check_output(Path("/nowhere/yet"))
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise OutputFolderError(
            f"{folder} holds something already and is left as it is; name a new folder, or remove "
            "it."
        )


def check_write_access(repo_id: str, *, private: bool = False, token: str | None = None) -> None:
    """Make sure that a push will be let in, before hours are spent on what is to be pushed.

    Creates the repo where it does not exist, as a push would.

    Args:
        repo_id: ``user/repo``.
        private: Whether a new repo is private.
        token: A write token; None takes the one that is logged in.

    Raises:
        HubError: If there is no token, no write access, or no Hub.
    """
    api = HfApi(token=token)
    with _explained(f"write access to {repo_id}"):
        api.whoami()
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.auth_check(repo_id, write=True)


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload slim model with timm_linop",
    token: str | None = None,
) -> CommitInfo:
    """Push a slim folder as exactly one commit; pushing the same again changes nothing.

    Args:
        folder: A folder that `save` wrote, or a run folder that holds one in slim/.
        repo_id: ``user/repo``; created where it does not exist.
        private: Whether a new repo is private.
        revision: Branch to push to; None is the default branch.
        message: The commit's title.
        token: A write token; None takes the one that is logged in.

    Returns:
        What huggingface_hub tells of the commit.

    Raises:
        ExpansionError: If the folder holds an expanded model.
        CheckpointError: If it holds no slim model of ours.
        HubError: If the Hub refuses, or someone else pushed at the same moment.
    """
    folder = slim_folder(Path(folder))
    _check_slim(folder)
    api = HfApi(token=token)
    with _explained(f"pushing {folder} to {repo_id}"):
        api.create_repo(repo_id, private=private, exist_ok=True)
        head = api.model_info(repo_id, revision=revision)
        files = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
        there = {sibling.rfilename for sibling in head.siblings or []}
        stale = {name for name in there - set(files) if name.startswith(f"{FIGURES}/")}
        return api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, path) for name, path in files.items()),
                *(CommitOperationDelete(name) for name in sorted(stale)),
            ],
            commit_message=message,
            revision=revision,
            parent_commit=head.sha,
        )


def _refuse_broken(model: nn.Module) -> None:
    broken = broken_parameter(model)
    if broken is not None:
        raise CheckpointError(
            f"{broken!r} holds numbers that are not finite, so the model is not saved; go back to "
            "a checkpoint from before it diverged."
        )


def _refuse_expanded(model: nn.Module, verb: str) -> None:
    if is_expanded(model):
        raise ExpansionError(
            f"the model is expanded and is not {verb}: its chains are many times the slim layers' "
            "size; contract(model) first."
        )


def _check_slim(folder: Path) -> None:
    config, weights = read_config(folder / CONFIG), read_weights(folder / WEIGHTS)
    if any(".parametrizations." in name for name in weights):
        raise ExpansionError(
            f"{folder} holds an expanded model and is not pushed: contract(model) and save again."
        )
    structure = config.get("model_args", {}).get("pruned")
    if not str(config.get("architecture", "")).startswith(PREFIX) or structure is None:
        raise CheckpointError(
            f"{folder} holds no slim model of timm_linop (architecture "
            f"{config.get('architecture')!r}); write it with timm_linop.save()."
        )
    Structure.from_dict(structure)


def _files(folder: Path) -> Iterator[Path]:
    """The files that are the model, and nothing else that lies there."""
    yield from (folder / name for name in (CONFIG, WEIGHTS, CARD) if (folder / name).is_file())
    yield from sorted((folder / FIGURES).glob("*.png"))


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever the Hub's client raises into one sentence without headers or tokens."""
    try:
        yield
    except LinOPError:
        raise
    except LocalTokenNotFoundError:
        raise HubError(
            f"{what}: no token found; log in with 'hf auth login', or set HF_TOKEN to one that "
            "may write."
        ) from None
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = _ADVICE.get(status or 0, "check the network and try again.")
        # Not chained: the client's exceptions hold the request, and with it the token.
        raise HubError(
            f"{what}: {constants.ENDPOINT} answered {status or type(error).__name__}; {advice}"
        ) from None


_ADVICE = {
    401: "the token is missing or not valid; log in again with 'hf auth login'.",
    403: "the token may not write there; use a token with write access to that account.",
    404: "there is no such repo, or the token may not see it; check the id.",
    409: "someone else is writing there; try again.",
    412: "someone else pushed at the same moment; push again.",
    429: "too many requests; wait a minute and try again.",
}
