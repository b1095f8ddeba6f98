"""Loading by name: `timm_linop.load`, timm's own door, teachers, pruned=; what they refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import HfApi, constants
from PIL import Image

import timm_linop
from tests.hub_client import publish, use_hub
from tests.hub_server import HubServer
from tests.slims import images, slim, twin
from timm_linop.errors import CheckpointError, HubError, LinOPError
from timm_linop.models import _located, make_teacher
from timm_linop.recipe import DistillConfig, Recipe

NAME = "test_resnet"
CLASSES = ("ant", "bee", "cow", "dog", "eel")
DATA = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 64, 64)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return timm_linop.save(slim(NAME), tmp_path_factory.mktemp("w") / "slim", class_names=CLASSES)


def changed(folder: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a slim folder with another config.json."""
    shutil.copytree(folder, target)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (target / "config.json").write_text(json.dumps(config))
    return target


def newer_version(config: dict[str, Any]) -> None:
    """As a later timm_linop may write it: with what this one would find strange, too."""
    config["model_args"]["pruned"]["version"] = 2
    config["model_args"]["device"] = {"new": []}


@pytest.fixture(scope="module")
def hub(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    root = tmp_path_factory.mktemp("hub")
    with HubServer(root / "hub") as server:
        publish(server, "alice/slim", folder)
        api = HfApi(endpoint=server.endpoint, token=server.token("alice", write=True))
        api.create_tag("alice/slim", tag="v1")
        other = changed(folder, root / "other", lambda c: c.update(label_names=list("vwxyz")))
        publish(server, "alice/slim", other)
        publish(server, "alice/secret", folder, private=True)
        newer = changed(folder, root / "newer", newer_version)
        publish(server, "alice/newer", newer)
        (root / "foreign").mkdir()
        (root / "foreign" / "config.json").write_text('{"architectures": ["BertModel"]}')
        (root / "foreign" / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()
        )
        publish(server, "alice/foreign", root / "foreign")
        (root / "bare").mkdir()
        (root / "bare" / "notes.txt").write_text("no model")
        publish(server, "alice/bare", root / "bare")
        yield server


@pytest.fixture(autouse=True)
def client(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(hub, None, monkeypatch, tmp_path / "home")


# One call ----------------------------------------------------------------------------------------


def test_a_folder_gives_model_transform_and_names(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run / "slim")
    for name in (folder, str(run), f"local-dir:{folder}"):
        model, transform, names = timm_linop.load(name)
        assert not model.training and names == CLASSES
        assert torch.equal(model(images(NAME)), slim(NAME)(images(NAME)))
        image = transform(Image.new("RGB", (300, 200)))
        assert image.shape == timm.data.resolve_model_data_config(model)["input_size"]


def test_any_image_gets_the_channels_of_the_model(tmp_path: Path) -> None:
    grey = timm.create_model("test_resnet", in_chans=1, num_classes=2)
    model, transform, _ = timm_linop.load(timm_linop.save(grey, tmp_path / "grey"))
    for mode in ("RGB", "L", "P", "RGBA"):
        image = transform(Image.new(mode, (300, 200)))
        assert model(image[None]).shape == (1, 2)


def test_a_repo_at_a_revision() -> None:
    x = images(NAME)
    for name, revision in {
        "alice/slim@v1": None,
        "alice/slim": "v1",
        "hf-hub:alice/slim": "v1",
    }.items():
        loaded = timm_linop.load(name, revision=revision)
        assert loaded.class_names == CLASSES
        assert torch.equal(loaded.model(x), slim(NAME)(x))
    assert timm_linop.load("alice/slim").class_names == tuple("vwxyz")


def test_arguments_go_to_timm() -> None:
    wide = timm_linop.load("alice/slim", rate=2, seed=0).model
    assert timm_linop.audit(wide) and not wide.training
    loaded = timm_linop.load("alice/slim", num_classes=3, device="cpu")
    assert loaded.model(images(NAME)).shape == (2, 3) and loaded.class_names is None
    features, transform, _ = timm_linop.load("alice/slim", features_only=True)
    maps = features(images(NAME))
    assert [m.shape[1] for m in maps] == features.feature_info.channels()
    assert transform(Image.new("RGB", (300, 200))).ndim == 3


def test_a_private_repo_with_a_token(hub: HubServer) -> None:
    token = hub.token("alice")
    loaded = timm_linop.load("alice/secret", token=token)
    assert loaded.class_names == CLASSES
    assert token not in repr(loaded.model.pretrained_cfg)


def test_a_folder_wins_over_a_repo_of_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "alice" / "bare")
    monkeypatch.chdir(tmp_path)
    assert timm_linop.load("alice/bare").class_names == CLASSES


# Other doors -------------------------------------------------------------------------------------


def test_timms_own_door() -> None:
    x = images(NAME)
    model = timm.create_model("hf-hub:alice/slim@v1", pretrained=True).eval()
    assert torch.equal(model(x), slim(NAME)(x))
    assert timm.create_model("hf-hub:alice/slim", pretrained=True, num_classes=7)(x).shape == (2, 7)
    gray = timm.create_model("hf-hub:alice/slim", pretrained=True, in_chans=1)
    assert gray(x[:, :1]).shape == (2, 5)
    maps = timm.create_model("hf-hub:alice/slim", pretrained=True, features_only=True)(x)
    assert len(maps) == 5
    assert timm.create_model("hf-hub:alice/slim", pretrained=False)(x).shape == (2, 5)


def test_the_weights_are_of_the_commit_of_the_config(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push between the two downloads must not give one model's shape and another's weights."""
    publish(hub, "bob/moving", folder)
    later = timm_linop.save(timm.create_model(NAME, num_classes=2), tmp_path / "later")
    read = timm_linop.checkpoint.read_config

    def read_then_push(path: Path) -> Any:
        publish(hub, "bob/moving", later)
        return read(path)

    monkeypatch.setattr("timm_linop.named.read_config", read_then_push)
    model = timm.create_model("hf-hub:bob/moving", pretrained=True).eval()
    assert torch.equal(model(images(NAME)), slim(NAME)(images(NAME)))
    assert timm_linop.load("bob/moving").model.num_classes == 2


def test_a_repo_as_pruned_and_as_teacher(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(NAME)
    expected = slim(NAME)(x)
    assert torch.equal(twin(NAME, "hf-hub:alice/slim@v1")(x), expected)
    recipe = Recipe(distill=DistillConfig(teacher="hf-hub:alice/secret"))
    with pytest.raises(HubError, match="no such repo, or it is private"):
        make_teacher(recipe, DATA)
    monkeypatch.setenv("HF_TOKEN", hub.token("alice"))
    assert make_teacher(recipe, DATA) is not None
    assert torch.equal(twin(NAME, "hf-hub:alice/secret")(x), expected)


def test_a_folder_as_teacher(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "dense")
    Path("test_resnet").mkdir()

    def logits(name: str) -> torch.Tensor:
        teacher = make_teacher(Recipe(distill=DistillConfig(teacher=name)), DATA)
        return teacher.model(images(NAME))

    assert torch.equal(logits("dense"), logits("local-dir:dense"))
    assert _located("test_resnet") == "test_resnet"  # a folder hides no architecture


OFFLINE = """
import sys, timm, timm_linop, torch
from timm_linop.errors import HubError
x = torch.load(sys.argv[1])
torch.set_num_threads(1)
model = timm.create_model("hf-hub:alice/secret", pretrained=True).eval()
rows = [model(x), timm_linop.load("alice/secret").model(x)]
wide = timm.create_model("linop_test_resnet", pruned="hf-hub:alice/secret", rate=0).eval()
rows.append(wide(x))
torch.save(rows, sys.argv[2])
print(timm_linop.load("alice/secret").class_names)
try:
    timm_linop.load("alice/slim")
except HubError as error:
    print(error)
"""


def test_a_clean_process_and_then_without_a_network(hub: HubServer, tmp_path: Path) -> None:
    token = hub.token("alice")
    torch.save(images(NAME), tmp_path / "x.pt")
    for offline in (False, True):
        env = hub.env(tmp_path / "other", None if offline else token)
        if offline:
            env |= {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
        program = OFFLINE if offline else OFFLINE[: OFFLINE.index("try:")]
        command = [sys.executable, "-c", program, tmp_path / "x.pt", tmp_path / "y.pt"]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for logits in torch.load(tmp_path / "y.pt"):
            assert torch.equal(logits, slim(NAME)(images(NAME)))
        assert str(CLASSES) in done.stdout and token not in done.stdout + done.stderr
    assert "config.json is not in the cache and HF_HUB_OFFLINE is set" in done.stdout


# Refusals ----------------------------------------------------------------------------------------

LOADERS: dict[str, Callable[[str], Any]] = {
    "load": timm_linop.load,
    "pruned": lambda repo: twin(NAME, f"hf-hub:{repo}"),
}


@pytest.mark.parametrize("door", LOADERS)
@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("alice/none", "there is no such repo, or it is private and the token may not see it"),
        ("alice/secret", "there is no such repo, or it is private and the token may not see it"),
        ("alice/slim@v9", "no branch, tag or commit of that name; check .* what stands behind its"),
        ("alice/bare", "it holds no config.json, so it is no model that timm_linop.push"),
        ("alice/foreign", "no model of timm"),
        ("alice/newer", "is of version 2, and this timm_linop reads 1 at most.*upgrade timm_linop"),
    ],
)
def test_what_a_repo_is_refused_for(door: str, repo: str, message: str) -> None:
    with pytest.raises((HubError, CheckpointError), match=message) as refused:
        LOADERS[door](repo)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("door", LOADERS)
def test_a_gated_repo_and_a_bad_token(
    door: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fail("*", "/resolve/", status=403, headers={"X-Error-Code": "GatedRepo"})
    with pytest.raises(HubError, match="it is gated; check the id, ask for access on its page"):
        LOADERS[door]("alice/slim")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError, match="the token is not valid; log in again") as refused:
        LOADERS[door]("alice/slim")
    told: BaseException | None = refused.value
    while told is not None:  # the client's own errors hold the request, and with it the token
        assert isinstance(told, LinOPError) and "hf_wrong" not in str(told) + repr(told)
        told = told.__cause__ or told.__context__


def test_timms_door_refuses_a_newer_version(folder: Path, tmp_path: Path) -> None:
    newer = changed(folder, tmp_path / "newer", newer_version)
    for name in ("hf-hub:alice/newer", f"local-dir:{newer}"):
        for pretrained in (True, False):
            with pytest.raises(CheckpointError, match="upgrade timm_linop"):
                timm.create_model(name, pretrained=pretrained)


def test_names_that_are_nothing(folder: Path, tmp_path: Path) -> None:
    for name in ("slim", "/nowhere/slim/at/all", f"{tmp_path}/none", "local-dir:alice/slim", ""):
        with pytest.raises(LinOPError, match=r"no id of a repo|holds no slim model"):
            timm_linop.load(name)
    with pytest.raises(
        HubError, match="there is no folder runs/first, and hf-hub:runs/first cannot"
    ):
        timm_linop.load("runs/first")
    with pytest.raises(CheckpointError, match="is a folder and has no revision 'v1'"):
        timm_linop.load(folder, revision="v1")
    with pytest.raises(HubError, match="leave one out"):
        timm_linop.load("alice/slim@v1", revision="main")
    plain = tmp_path / "plain"
    timm.models.save_for_hf(timm.create_model(NAME), str(plain), safe_serialization=True)
    with pytest.raises(
        CheckpointError, match=r"load a model of timm's own with timm\.create_model"
    ):
        timm_linop.load(plain)


def test_no_network_and_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with pytest.raises(HubError, match="not in the cache and the Hub cannot be reached; check the"):
        timm_linop.load("alice/slim")
