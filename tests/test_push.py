"""What a push does and what it leaves alone, with the real client against the tests' own Hub."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file

from tests.hub_client import REPO, TEACHER, slim_folder, use_hub
from tests.hub_server import HubServer
from timm_linop import cli
from timm_linop.card import CardData, free_text
from timm_linop.errors import CheckpointError, HubError, LinOPError
from timm_linop.hub import Shipment, check_metadata, check_write_access, push
from timm_linop.hub.readme import finished

pytestmark = pytest.mark.filterwarnings("ignore:the model's licence is not known")


@pytest.fixture
def alice(token: str) -> HfApi:
    """Logged in as alice."""
    return HfApi()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return slim_folder(tmp_path / "slim", widths=b"\x89PNG widths")


def text(api: HfApi, path: str = "README.md", revision: str | None = None) -> str:
    return Path(api.hf_hub_download(REPO, path, revision=revision)).read_text(encoding="utf-8")


def commits(api: HfApi, revision: str | None = None) -> list[str]:
    return [commit.title for commit in api.list_repo_commits(REPO, revision=revision)]


def put(api: HfApi, path: str, content: bytes, repo: str = REPO) -> None:
    api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=repo)


def with_teacher(api: HfApi, tmp_path: Path, card: bytes) -> Path:
    """A slim folder whose card names a teacher on the Hub."""
    api.create_repo(TEACHER)
    put(api, "README.md", card, TEACHER)
    data = CardData("slim", "test_resnet", "linop", teacher="dense", teacher_id=TEACHER)
    return slim_folder(tmp_path / "taught", card=data)


def test_one_commit_and_a_second_push_is_none(alice: HfApi, folder: Path) -> None:
    first = push(folder.parent, REPO, message="Ours")  # as a run folder, too
    assert commits(alice) == ["Ours", "initial commit"]
    again = push(folder, REPO)
    assert (again.oid, len(commits(alice))) == (first.oid, 2)
    assert f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in text(alice).replace("'", '"')
    local = (folder / "README.md").read_text()
    assert "local-dir:slim" in local  # what lies on the disk is left as it is
    for mark in ('"', "'"):
        local = local.replace(f"{mark}local-dir:slim{mark}", f"{mark}hf-hub:{REPO}{mark}")
    assert text(alice) == local  # and all else byte for byte


def test_only_the_models_own_name_is_changed_in_the_snippets() -> None:
    one = '```python\nm = timm.create_model("hf-hub:me/old", pretrained=True)\n```\n'
    two = "```python\nt = timm.create_model('hf-hub:timm/dense')\nn = f(\"hf-hub:me/old\")\n```\n"
    text = '```bash\ntrain.py --teacher "hf-hub:me/old"\n```\n'
    card = f"---\ntags:\n- a\n---\n{text}{one}{two}"
    expected = card.replace(one, one.replace("me/old", REPO)).replace(
        two, two.replace("me/old", REPO)
    )
    assert finished(card, REPO, {}) == expected


def test_our_stale_files_go_and_foreign_ones_stay(
    alice: HfApi, folder: Path, tmp_path: Path
) -> None:
    for name in ("model.onnx", "model.pt2"):
        (folder / name).write_bytes(name.encode())
    push(folder, REPO)
    for name in ("notes.txt", "demo/figure.png", "figures/deep/er.png", "figures/drawn.svg"):
        put(alice, name, b"mine")
    newer = slim_folder(tmp_path / "newer", seed=1, training=b"\x89PNG training")
    (newer / "model.onnx").write_bytes(b"newer")
    push(newer, REPO)
    files = set(alice.list_repo_files(REPO))
    assert {"notes.txt", "demo/figure.png", "figures/deep/er.png", "figures/drawn.svg"} <= files
    assert {"figures/training.png", "model.onnx", "config.json", "model.safetensors"} <= files
    assert not files & {"figures/widths.png", "model.pt2"}
    assert len(commits(alice)) == 7


def test_an_export_of_somebody_else_stays(alice: HfApi, folder: Path) -> None:
    push(folder, REPO)
    put(alice, "model.onnx", b"mine")
    push(folder, REPO)
    assert "model.onnx" in alice.list_repo_files(REPO)
    assert len(commits(alice)) == 3


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_the_owner_wrote_on_the_hub_survives(
    end: str, alice: HfApi, folder: Path, tmp_path: Path
) -> None:
    push(folder, REPO)
    assert set(free_text(text(alice))) == {"notes", "limits"}
    words = r"Beware of *owls*, \1 and C:\new." + "\n\n## A heading of mine"
    edited = (
        text(alice).replace("<!-- free: notes -->\n", f"<!-- free: notes -->\n{words}\n")
        + "\n<!-- free: older -->\nFrom an older template.\n<!-- /free: older -->\n"
    )
    put(alice, "README.md", edited.replace("\n", end).encode())
    newer = slim_folder(tmp_path / "newer", seed=1)
    push(newer, REPO)
    kept = free_text(text(alice))
    assert kept == {"notes": words, "limits": "", "older": "From an older template."}
    before = len(commits(alice))
    push(newer, REPO)
    assert len(commits(alice)) == before


def test_a_branch_is_made_and_the_default_one_left_alone(alice: HfApi, folder: Path) -> None:
    push(folder, REPO, revision="try/1")
    assert len(commits(alice)) == 1
    assert len(commits(alice, "try/1")) == 2
    push(folder, REPO, revision="try/1")
    assert len(commits(alice, "try/1")) == 2
    alice.create_tag(REPO, tag="v1")
    with pytest.raises(HubError, match="'v1' is a tag"):
        push(folder, REPO, revision="v1")
    assert {branch.name for branch in alice.list_repo_refs(REPO).branches} == {"main", "try/1"}
    card = text(alice, revision="try/1")
    assert f"hf-hub:{REPO}@try/1" in card and f"hf-hub:{REPO}'" not in card


def test_a_new_branch_keeps_the_licence_of_the_default_one(alice: HfApi, folder: Path) -> None:
    push(folder, REPO, license="mit")
    push(folder, REPO, revision="next")
    assert ModelCard(text(alice, revision="next")).data.license == "mit"


def test_a_name_that_is_no_tag_is_told_before_the_commit(alice: HfApi, folder: Path) -> None:
    with pytest.raises(HubError, match="tag='bad tag' is no name of a tag"):
        push(folder, REPO, tag="bad tag")
    assert not alice.repo_exists(REPO)


@pytest.mark.parametrize("words", [[], ["--help"], ["push"], ["push", "--help"]])
def test_help_is_no_traceback(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "usage: timm-linop" in "".join(capsys.readouterr())


def test_a_tag_names_the_commit_and_is_never_moved(
    alice: HfApi, folder: Path, tmp_path: Path
) -> None:
    done = push(folder, REPO, tag="v1")
    for _ in range(2):
        assert {tag.name: tag.target_commit for tag in alice.list_repo_refs(REPO).tags} == {
            "v1": done.oid
        }
        push(folder, REPO, tag="v1")  # nothing to do
    with pytest.raises(HubError, match=r"has a tag v1 already.*Nothing was pushed"):
        push(slim_folder(tmp_path / "newer", seed=1), REPO, tag="v1")
    assert len(commits(alice)) == 2


def test_a_tag_that_fails_is_told_and_pushing_again_sets_it(
    alice: HfApi, hub: HubServer, folder: Path
) -> None:
    hub.fail("POST", "/tag/", status=503)
    with pytest.raises(HubError, match=f"is in {REPO}, but without its tag v1.*503"):
        push(folder, REPO, tag="v1")
    push(folder, REPO, tag="v1")
    assert [tag.name for tag in alice.list_repo_refs(REPO).tags] == ["v1"]
    assert len(commits(alice)) == 2


def test_a_pull_request_in_somebodys_repo(
    alice: HfApi,
    hub: HubServer,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    push(folder, REPO)
    head = alice.model_info(REPO).sha
    use_hub(hub, hub.token("bob", write=True), monkeypatch, tmp_path / "bob")
    newer = slim_folder(tmp_path / "newer", seed=1)
    with pytest.raises(HubError, match="may not write there"):
        push(newer, REPO)
    opened = push(newer, REPO, create_pr=True)
    assert opened.pr_url == f"{hub.endpoint}/{REPO}/discussions/1"
    assert alice.model_info(REPO).sha == head
    assert commits(alice, "refs/pr/1")[1:] == commits(alice)
    with pytest.raises(HubError, match="leave out --revision and --tag"):
        push(newer, REPO, create_pr=True, tag="v1")


def test_a_dry_run_reads_only(
    alice: HfApi, hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = push(folder, REPO, dry_run=True)
    assert isinstance(told, Shipment)
    assert told.files.keys() == told.changed
    assert told.files["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert not alice.repo_exists(REPO)
    cli.main(["push", str(folder), REPO, "--dry-run", "--license", "mit"])
    printed = capsys.readouterr().out
    assert "license: mit" in printed and "config.json" in printed and "# slim" in printed
    writing = {call.path for call in hub.requests if call.method not in ("GET", "HEAD")}
    assert writing == {"/api/validate-yaml"}
    push(folder, REPO)
    put(alice, "figures/old.png", b"old")
    told = push(folder, REPO, dry_run=True)
    assert (told.changed, told.removed) == (set(), ("figures/old.png",))
    assert len(commits(alice)) == 3


def test_a_dry_run_without_a_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    told = push(folder, REPO, dry_run=True, license="mit")
    assert "out of reach" in str(told) and "license: mit" in told.card


def test_the_licence_is_the_teachers(alice: HfApi, tmp_path: Path) -> None:
    folder = with_teacher(alice, tmp_path, b"---\nlicense: cc-by-nc-4.0\n---\n# Dense\n")
    with pytest.warns(UserWarning, match=f"cc-by-nc-4.0, as the card of {TEACHER}"):
        push(folder, REPO, license="mit")
    card = ModelCard(text(alice))
    assert (card.data.license, card.data.base_model) == ("cc-by-nc-4.0", TEACHER)
    section = card.text.split("## Licence")[1].split("## ")[0]
    assert section.count("cc-by-nc-4.0") == 1 and "not known" not in section
    before, after = (ModelCard((folder / "README.md").read_text()), card)
    assert before.data.to_dict() | {"license": "cc-by-nc-4.0"} == after.data.to_dict()


def test_a_teacher_that_cannot_be_read_is_no_reason_to_guess(
    alice: HfApi, hub: HubServer, tmp_path: Path
) -> None:
    folder = with_teacher(alice, tmp_path, b"---\nlicense: mit\n---\n")
    hub.fail("GET", f"/api/models/{TEACHER}$", status=503)
    with pytest.raises(HubError, match="503"):
        push(folder, REPO)
    hub.fail("GET", f"/api/models/{TEACHER}$", status=404)
    push(folder, REPO, license="apache-2.0")
    assert ModelCard(text(alice)).data.license == "apache-2.0"


def test_a_licence_of_its_own_brings_name_and_address(alice: HfApi, tmp_path: Path) -> None:
    teacher = b"---\nlicense: other\nlicense_name: owl\nlicense_link: https://owl.test\n---\n"
    push(with_teacher(alice, tmp_path, teacher), REPO)
    data = ModelCard(text(alice)).data
    assert (data.license, data.license_name, data.license_link) == (
        "other",
        "owl",
        "https://owl.test",
    )


@pytest.mark.filterwarnings("default")
def test_an_unknown_licence_is_asked_for_and_not_assumed(alice: HfApi, tmp_path: Path) -> None:
    folder = with_teacher(alice, tmp_path, b"---\ntags: [x]\n---\n")
    with pytest.warns(UserWarning, match="--license"):
        push(folder, REPO)
    assert ModelCard(text(alice)).data.license is None
    assert "not known" in text(alice).split("## Licence")[1]
    push(folder, REPO, license="mit")
    assert ModelCard(text(alice)).data.license == "mit"
    before = len(commits(alice))
    push(folder, REPO)  # it stands on the Hub now
    assert len(commits(alice)) == before


def test_a_public_repo_is_not_taken_for_a_private_one(alice: HfApi, folder: Path) -> None:
    alice.create_repo(REPO)
    with pytest.raises(HubError, match="public already"):
        push(folder, REPO, private=True)
    with pytest.raises(HubError, match="public already"):
        check_write_access(REPO, private=True)  # before training
    assert len(commits(alice)) == 1
    push(folder, "alice/other", private=True)
    push(folder, "alice/other", private=True)
    assert alice.model_info("alice/other").private


def spoil_weights(folder: Path, change: str) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = "conv1.0.weight" if change == "shape" else "fc.weight"
    if change == "nan":
        weights[name].view(-1)[0] = torch.nan
    elif change == "shape":
        weights[name] = weights[name][:-1].clone()
    else:
        weights[name] *= 1.5
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nan", "not finite|logits are not those"),
        ("shape", "."),
        ("scale", "logits are not those that were saved"),
    ],
)
def test_damaged_weights_are_not_pushed(
    change: str, message: str, alice: HfApi, folder: Path
) -> None:
    spoil_weights(folder, change)
    with pytest.raises(LinOPError, match=message):
        push(folder, REPO)
    assert not alice.repo_exists(REPO)


def test_a_folder_without_logits_or_card_is_not_pushed(alice: HfApi, folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    card = (folder / "README.md").read_text()
    (folder / "README.md").unlink()
    with pytest.raises(CheckpointError, match=r"no README.md"):
        push(folder, REPO)
    (folder / "README.md").write_text(card.replace("tags:", "tags: ["))
    with pytest.raises(HubError, match="the metadata above the card cannot be read"):
        push(folder, REPO)
    del config["model_args"]["probe"]
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="holds no logits"):
        push(folder, REPO)
    assert not alice.repo_exists(REPO)


@pytest.mark.parametrize("repo", ["slim", "a/b/c", "alice/..", "alice/a--b", "/x", "x/", "a b/c"])
def test_what_is_no_repo_is_told_at_once(repo: str, alice: HfApi, hub: HubServer) -> None:
    for attempt in (
        lambda: push("/nowhere", repo),
        lambda: check_write_access(repo),
        lambda: check_metadata(repo),
    ):
        with pytest.raises(HubError, match="is no id of a repo"):
            attempt()
    assert not hub.requests


def test_metadata_is_checked_before_training(alice: HfApi, hub: HubServer) -> None:
    check_metadata(REPO, license="mit")
    with pytest.warns(UserWarning, match="hub_license"):
        check_metadata(REPO)
    hub.fail("POST", "/api/validate-yaml", status=400)
    with pytest.raises(HubError, match="metadata of alice/slim"):
        check_metadata(REPO, license="mit")


def test_the_command_takes_every_setting(
    alice: HfApi, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--private", "--revision", "next", "--tag", "v1", "--message", "Mine"]
    cli.main(["push", str(folder), REPO, *flags, "--license=mit"])
    assert f"/{REPO}/commit/" in capsys.readouterr().out
    assert commits(alice, "v1") == ["Mine", "initial commit"]
    assert ModelCard(text(alice, revision="v1")).data.license == "mit"
    assert alice.model_info(REPO).private
    cli.main(["push", "--create-pr", str(folder), REPO])
    assert f"/{REPO}/discussions/1" in capsys.readouterr().out
