"""Every way to name a slim model gives the same one; every bad file is refused in one sentence."""

from __future__ import annotations

import json
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import timm_linop
from tests.slims import CLASSES, images, lively, slim, twin, write_folder
from timm_linop.errors import (
    CheckpointError,
    HubError,
    LinOPError,
    StructureError,
    UnknownModelError,
)
from timm_linop.source import read_config, read_weights, resolve, slim_folder
from timm_linop.structure import Structure

NAME = "test_resnet"
CANARY = "canary"  # a file that only exists if a pickle's code was run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(slim(NAME), tmp_path / "slim")


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def change_weights(folder: Path, **changes: Tensor | None) -> None:
    """Replace tensors by name (``__`` for a dot); None takes one out."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name, tensor in changes.items():
        weights.pop(name.replace("__", "."), None)
        if tensor is not None:
            weights[name.replace("__", ".")] = tensor
    save_file(weights, path)


def loads(folder: Path) -> list[Callable[[], Any]]:
    """Both doors of a folder: ours, and timm's own."""
    return [
        lambda: twin(NAME, folder),
        lambda: timm.create_model(f"local-dir:{folder}", pretrained=True).eval(),
    ]


# --- all the right ones -------------------------------------------------------------------------


def of_module(_: Path) -> Any:
    return slim(NAME)


def of_folder(tmp_path: Path) -> Any:
    return write_folder(slim(NAME), tmp_path / "slim")


def of_folder_named_as_timm_does(tmp_path: Path) -> Any:
    return f"local-dir:{of_folder(tmp_path)}"


def of_run_folder(tmp_path: Path) -> Any:
    write_folder(slim(NAME), tmp_path / "run" / "slim")
    return str(tmp_path / "run")


def of_folder_without_structure(tmp_path: Path) -> Any:
    folder = of_folder(tmp_path)
    change_config(folder, lambda config: config["model_args"].pop("pruned"))
    return folder


def of_safetensors(tmp_path: Path) -> Any:
    save_file(slim(NAME).state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def of_pth(tmp_path: Path) -> Any:
    torch.save(slim(NAME).state_dict(), tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def of_training_checkpoint(tmp_path: Path) -> Any:
    wrapped = {f"module.{name}": tensor for name, tensor in slim(NAME).state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "last.pth.tar")
    return tmp_path / "last.pth.tar"


KINDS = [
    of_module,
    of_folder,
    of_folder_named_as_timm_does,
    of_run_folder,
    of_folder_without_structure,
    of_safetensors,
    of_pth,
    of_training_checkpoint,
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_model_bit_for_bit(
    kind: Callable[[Path], Any], tmp_path: Path
) -> None:
    pruned, x = kind(tmp_path), images(NAME)
    same = twin(NAME, pruned)
    assert same.num_classes == CLASSES  # its own head, unless another is asked for
    assert torch.equal(same(x), slim(NAME)(x))
    other = twin(NAME, pruned, num_classes=7)
    assert other(x).shape == (2, 7)
    assert torch.equal(other.forward_features(x), slim(NAME).forward_features(x))


@pytest.mark.parametrize("as_dict", [True, False], ids=["dict", "Structure"])
def test_a_bare_structure_gives_shapes_only(as_dict: bool) -> None:
    structure = Structure.of(slim(NAME))
    model = twin(NAME, structure.to_dict() if as_dict else structure, num_classes=CLASSES)
    expected = {name: t.shape for name, t in slim(NAME).state_dict().items()}
    assert {name: t.shape for name, t in model.state_dict().items()} == expected
    with pytest.raises(CheckpointError, match=r"no weights for a bare structure .* pass pruned="):
        twin(NAME, structure, pretrained=True)


def test_a_headless_state_dict(tmp_path: Path) -> None:
    weights = {k: v for k, v in slim(NAME).state_dict().items() if not k.startswith("fc.")}
    save_file(weights, tmp_path / "backbone.safetensors")
    x = images(NAME)
    backbone = twin(NAME, tmp_path / "backbone.safetensors")
    assert torch.equal(backbone(x), slim(NAME).forward_head(slim(NAME).forward_features(x), True))
    assert twin(NAME, tmp_path / "backbone.safetensors", num_classes=3)(x).shape == (2, 3)


@pytest.mark.parametrize("args", [{"in_chans": 1}, {"img_size": 96}], ids=str)
def test_what_the_model_was_built_with_comes_along(args: dict[str, int], tmp_path: Path) -> None:
    model = slim("test_vit", **args)
    size = args.get("img_size", 160)
    x = torch.randn(2, args.get("in_chans", 3), size, size)
    folder = write_folder(model, tmp_path / "slim")
    for built in (
        twin("test_vit", model),
        twin("test_vit", folder),
        timm.create_model(f"local-dir:{folder}", pretrained=True).eval(),
    ):
        assert torch.equal(built(x), model(x))
        again = twin("test_vit", built)  # and from there on
        assert torch.equal(again(x), model(x))


def test_the_weights_say_how_many_classes_not_the_config(folder: Path) -> None:
    change_config(folder, lambda c: c["model_args"].update(num_classes=900, in_chans=9))
    change_config(folder, lambda c: c.update(num_classes=900))
    source = resolve(folder, NAME)
    assert (source.model_args["num_classes"], source.model_args["in_chans"]) == (CLASSES, 3)
    assert torch.equal(twin(NAME, folder)(images(NAME)), slim(NAME)(images(NAME)))


def test_data_settings_and_labels_come_along_but_no_location(folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["label_names"] = list("abcde")
        config["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "url": "http://127.0.0.1:9/x.pth"}

    change_config(folder, change)
    cfg = twin(NAME, folder).pretrained_cfg
    assert (cfg["mean"], cfg["label_names"]) == ((0.1, 0.2, 0.3), list("abcde"))
    assert not cfg.get("url") and not cfg.get("file") and not cfg.get("hf_hub_id")


# --- what is not there --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pruned", "says"),
    [
        ("/nowhere/at/all", r"'/nowhere/at/all' does not exist.*Check the path"),
        ("user/repo", r"does not exist.*begin with 'hf-hub:'"),
        ("local-dir:/nowhere", "does not exist"),
        ("x" * 5_000, "does not exist"),
        ("a\0b", "does not exist"),
        (Path("/nowhere.safetensors"), "does not exist"),
        (3, "pruned=int is nothing a slim model can be read from; pass"),
        ([1], "pruned=list is nothing"),
        (torch.zeros(3), "pruned=Tensor is nothing"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_slim_model(pruned: Any, says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        twin(NAME, pruned)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_all_its_files(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=r"holds no slim model .*timm_linop\.save\(\)"):
        twin(NAME, folder)
    with pytest.raises(CheckpointError, match="holds no slim model"):
        slim_folder(folder)


def test_a_missing_weights_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.pth does not exist"):
        read_weights(tmp_path / "gone.pth")


# --- modules of another kind --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet34", "mobilenetv2_100"])
def test_a_slim_model_of_another_architecture(name: str, tmp_path: Path) -> None:
    dense = timm.create_model("resnet18")
    folder = write_folder(dense, tmp_path / "slim")
    for pruned in (dense, folder, Structure("resnet18"), Structure("resnet18").to_dict()):
        with pytest.raises(StructureError, match=rf"is a resnet18, not a {name}; .*linop_resnet18"):
            twin(name, pruned)
    with pytest.raises(StructureError, match=f"another architecture than {name}"):
        twin(name, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: timm_linop.expand(timm.create_model(NAME), 1, seed=0), r"contract\(model\) it"),
        (lambda: nn.Linear(2, 2), "does not say which timm architecture it is"),
        (lambda: timm.create_model(NAME, features_only=True), r"no tensor 'fc\.bias'"),
    ],
    ids=["expanded", "foreign", "features_only"],
)
def test_a_module_that_is_no_slim_model(make: Callable[[], nn.Module], says: str) -> None:
    with pytest.raises(StructureError, match=says):
        twin(NAME, make())


def test_expanded_weights_are_no_slim_model(tmp_path: Path) -> None:
    wide = timm_linop.expand(timm.create_model(NAME), 1, seed=0)
    save_file(wide.state_dict(), tmp_path / "wide.safetensors")
    with pytest.raises(StructureError, match=r"or are expanded.*contract\(model\) first"):
        twin(NAME, tmp_path / "wide.safetensors")


# --- weights that nobody vouches for ------------------------------------------------------------


class Evil:
    """Touches the canary when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: {"fc.weight": e}, lambda e: {"model": e}])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ""])
@pytest.mark.parametrize("plain", [True, False], ids=["pickle", "torch.save"])
def test_no_pickle_runs_its_code(tmp_path: Path, wrap: Any, suffix: str, plain: bool) -> None:
    canary, path = tmp_path / CANARY, tmp_path / f"evil{suffix}"
    payload = wrap(Evil(canary))
    if plain:
        path.write_bytes(pickle.dumps(payload, protocol=2))
    else:
        torch.save(payload, path)
    with pytest.raises(CheckpointError, match=r"pickled module|no readable state dict"):
        twin(NAME, path)
    assert not canary.exists()
    path = path.rename(tmp_path / "evil.pth")
    pickle.loads(path.read_bytes()) if plain else torch.load(path, weights_only=False)
    assert canary.exists()  # the trap does work


def test_a_pickled_module_is_told_how_to_be_saved(tmp_path: Path) -> None:
    torch.save(slim(NAME), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match=r"could run any code.*model\.state_dict\(\), path"):
        twin(NAME, tmp_path / "module.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("damage", ["empty", "half", "text", "flipped"])
def test_damaged_files(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(slim(NAME).state_dict(), path)
    else:
        save_file(slim(NAME).state_dict(), path)
    whole = path.read_bytes()
    twin(NAME, path)
    head = bytes(255 - byte for byte in whole[:64]) + whole[64:]
    damaged = {"empty": b"", "half": whole[: len(whole) // 2], "text": b"hello\n", "flipped": head}
    path.write_bytes(damaged[damage])
    with pytest.raises(
        CheckpointError, match=r"no readable state dict .* Save it again|or is damaged"
    ):
        twin(NAME, path)


def test_a_safetensors_header_that_declares_terabytes(tmp_path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
    header = json.dumps({"fc.weight": tensor}).encode()
    path = tmp_path / "huge.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(CheckpointError, match="no readable state dict"):
        twin(NAME, path)
    path.write_bytes((2**63 - 1).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="no readable state dict"):
        twin(NAME, path)


def right_weights() -> dict[Any, Any]:
    return dict(slim(NAME).state_dict())


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (torch.zeros(3), "no readable state dict"),
        ([1, 2], "no readable state dict"),
        ({1: torch.zeros(1)}, "no readable state dict"),
        ({"a": {"b": torch.zeros(1)}}, r"holds no state dict .*model\.state_dict\(\)"),
        ({"a": 3}, "holds no state dict"),
        ({}, "the slim model has no tensor"),
        ({"fc.weight": torch.zeros(1).expand(10**6, 10**6)}, r"does not hold that many"),
        ({"fc.bias": torch.zeros(1).expand(10**12)}, r"\[1000000000000\]"),
        ({"fc.weight": torch.zeros(5, 48).to("meta")}, "does not hold that many"),
        ({"fc.weight": torch.zeros(5, 48).to_sparse()}, "does not hold that many"),
        ({"fc.weight": torch.zeros(5, 48, dtype=torch.complex64)}, "complex64"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else type(value).__name__,
)
def test_files_that_hold_something_else(tmp_path: Path, content: Any, says: str) -> None:
    if isinstance(content, dict) and "fc.weight" in content:
        content = right_weights() | content
    torch.save(content, tmp_path / "other.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LinOPError, match=says):
        twin(NAME, tmp_path / "other.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


WRONG_WEIGHTS: list[tuple[dict[str, Tensor | None], str]] = [
    ({"foreign": torch.zeros(1)}, "foreign"),
    ({"layer1__0__conv1__weight": None}, r"layer1\.0\.conv1\.weight"),
    ({"fc__bias": None}, r"fc\.bias"),
    ({"bn1__num_batches_tracked": None, "conv1__0__weight": None}, r"conv1\.0\.weight"),
    ({"layer1__0__conv1__weight": torch.zeros(3, 3, 3, 3)}, "mismatch"),
    ({"layer1__0__conv1__weight": torch.zeros(999, 16, 3, 3)}, "mismatch"),
    ({"fc__weight": torch.zeros(6, 48)}, "mismatch"),
    ({"fc__weight": torch.zeros(5, 47)}, "mismatch"),
]


@pytest.mark.parametrize(("changes", "says"), WRONG_WEIGHTS, ids=lambda v: str(v)[:40])
@pytest.mark.parametrize("door", [0, 1], ids=["pruned=", "local-dir:"])
def test_weights_that_are_not_those_of_the_structure(
    folder: Path, changes: dict[str, Tensor | None], says: str, door: int
) -> None:
    load = loads(folder)[door]
    load()
    change_weights(folder, **changes)
    with pytest.raises(CheckpointError, match=rf"(?s){says}.*save\(\)|{says}.*another arch"):
        load()


@pytest.mark.parametrize(("changes", "says"), WRONG_WEIGHTS, ids=lambda v: str(v)[:40])
def test_weights_that_are_not_those_of_the_architecture(
    folder: Path, changes: dict[str, Tensor | None], says: str
) -> None:
    change_weights(folder, **changes)
    with pytest.raises(LinOPError, match=r"another architecture|smaller|contradict|mismatch"):
        twin(NAME, folder / "model.safetensors")


# --- config.json that nobody vouches for --------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[1]", "holds no JSON object"),
        ('"x"', "holds no JSON object"),
        ("null", "holds no JSON object"),
        ("\ud800".encode("utf-8", "surrogatepass"), "is no JSON"),
        (b"\xff\xfe\x00", "is no JSON"),
        ("[" * 200_000, "is no JSON"),
        ('{"a":' * 200_000, "is no JSON"),
        ('{"a": ' + "9" * 10_000 + "}", "is no JSON"),
        ('{"pretrained_cfg": []}', "pretrained_cfg is no JSON object"),
        ('{"architecture": "linop_test_resnet", "model_args": []}', "model_args is no JSON object"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_config_that_is_no_config(folder: Path, text: str | bytes, says: str) -> None:
    path = folder / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=says) as caught:
        twin(NAME, folder)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_huge_config_is_not_even_read(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(30_000_000_000)  # sparse: takes no room
    with pytest.raises(CheckpointError, match=r"30,000,000,000 bytes, over 20,000,000"):
        read_config(folder / "config.json")
    with pytest.raises(CheckpointError, match="save it again"):
        twin(NAME, folder)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda c: c.update(architecture="linop_resnet5O"), UnknownModelError, "'resnet50'"),
        (lambda c: c.update(architecture=3), UnknownModelError, "'3' is no architecture"),
        (lambda c: c["model_args"].update(pruned=[1]), StructureError, "list, not dict"),
        (lambda c: c["model_args"]["pruned"].update(version=99), CheckpointError, "upgrade"),
        (lambda c: c["model_args"]["pruned"].update(base="resnet18"), StructureError, "resnet18"),
    ],
)
def test_a_config_of_something_else(
    folder: Path, change: Callable[[dict[str, Any]], Any], error: type[Exception], says: str
) -> None:
    change_config(folder, change)
    with pytest.raises(error, match=says):
        twin(NAME, folder)


ABSURD = 10**12


@pytest.mark.parametrize("door", [0, 1], ids=["pruned=", "local-dir:"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["model_args"].update(foo=1), "unexpected keyword argument 'foo'"),
        (lambda c: c["model_args"].update(num_classes=ABSURD), "no size a model can have"),
        (lambda c: c["model_args"].update(in_chans=ABSURD), "no size a model can have"),
        (lambda c: c["model_args"].update(in_chans=float("inf")), "no size a model can have"),
        (lambda c: c["pretrained_cfg"].update(foo=1), "unexpected keyword argument 'foo'"),
        (lambda c: c["pretrained_cfg"].update(input_size=[3]), "cannot be built"),
        (lambda c: c["pretrained_cfg"].update(input_size=[3, ABSURD, 9]), "input_size"),
        (lambda c: c["pretrained_cfg"].update(input_size=[3, 9_000, 9_000]), "16,777,216"),
        (lambda c: c["pretrained_cfg"].update(first_conv=3), "cannot be built"),
        (lambda c: c["model_args"].update(pruned="/etc/passwd"), "names a place outside"),
        (lambda c: c["model_args"].update(pruned="hf-hub:eve/slim"), "names a place outside"),
    ],
)
def test_a_config_that_timm_would_choke_on(
    folder: Path, change: Callable[[dict[str, Any]], Any], says: str, door: int
) -> None:
    load = loads(folder)[door]
    load()
    change_config(folder, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LinOPError, match=says) as caught:
        load()
    assert len(str(caught.value)) < 600
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_slim_weights_under_a_config_without_structure_through_timm(folder: Path) -> None:
    change_config(folder, lambda config: config["model_args"].pop("pruned"))
    with pytest.raises(CheckpointError, match=r"cannot be built .*size mismatch"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_a_config_cannot_redirect_the_weights(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file(lively(NAME, num_classes=9).state_dict(), other)
    elsewhere = {"file": str(other), "url": "http://127.0.0.1:9/x", "num_classes": 9}
    change_config(folder, lambda config: config["pretrained_cfg"].update(elsewhere))
    x = images(NAME)
    assert torch.equal(twin(NAME, folder)(x), slim(NAME)(x))
    for name, place in {"pretrained_cfg": elsewhere, "checkpoint_path": str(other)}.items():
        change_config(folder, lambda config: config["model_args"].update({name: place}))  # noqa: B023
        with pytest.raises(CheckpointError, match=r"may not hold .* names a place to read from"):
            twin(NAME, folder)


# --- the Hub ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("token")
def test_hub_ids(folder: Path) -> None:
    api, x = HfApi(), images(NAME)
    for repo in ("alice/slim", "alice/bare"):
        api.create_repo(repo)
    api.upload_folder(repo_id="alice/slim", folder_path=folder)
    api.create_tag("alice/slim", tag="v1")
    config = folder / "config.json"
    api.upload_file(repo_id="alice/bare", path_in_repo=config.name, path_or_fileobj=config)
    expected = slim(NAME)(x)
    assert torch.equal(twin(NAME, "hf-hub:alice/slim")(x), expected)
    assert torch.equal(twin(NAME, "hf-hub:alice/slim@v1")(x), expected)
    assert torch.equal(timm.create_model("hf-hub:alice/slim", pretrained=True).eval()(x), expected)
    wide = twin(NAME, "hf-hub:alice/slim", rate=2, seed=0)
    assert torch.allclose(wide(x), expected, rtol=1e-4, atol=1e-5)
    for name in ("alice/none", "alice/bare", "alice/slim@none", "a b/c", "", "a/b/c"):
        with pytest.raises(HubError, match="check the id") as refused:
            twin(NAME, f"hf-hub:{name}")
        assert str(refused.value).startswith(f"hf-hub:{name} cannot be read")


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        HubError, match=r"config\.json is not in the cache and HF_HUB_OFFLINE is set; unset"
    ):
        twin(NAME, "hf-hub:alice/slim")


def test_a_state_dict_in_memory() -> None:
    model = slim("test_resnet")
    x = images("test_resnet")
    assert torch.equal(twin("test_resnet", model.state_dict())(x), model(x))


def test_masks_that_are_not_multiplied_in_are_named() -> None:
    model = timm.create_model("test_resnet")
    torch.nn.utils.prune.ln_structured(model.layer1[0].conv1, "weight", 0.5, n=2, dim=0)
    with pytest.raises(CheckpointError, match=r"conv1\.weight_mask.*pass the module itself"):
        resolve(model.state_dict(), "test_resnet")


def test_data_settings_are_the_bases_in_timms_own_types(tmp_path: Path) -> None:
    timm_linop.save(slim("test_resnet"), tmp_path / "slim")
    config = timm.data.resolve_model_data_config(twin("test_resnet", tmp_path / "slim"))
    assert config == timm.data.resolve_model_data_config(timm.create_model("test_resnet"))
