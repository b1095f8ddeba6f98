"""A folder from a stranger: each thing it may try is refused in one sentence, before memory goes.

The list is docs/hostile_files.md's. First each item by itself, at both doors; then mutated configs
and checkpoints, of which each gives a model or an error of timm_linop's own: at least 2,000 among
the slow tests, and a fifth as many in every run.
"""

from __future__ import annotations

import copy
import json
import pickle
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

import timm_linop
from timm_linop.errors import CheckpointError, LinOPError
from timm_linop.memory import VARIABLE, limit
from timm_linop.source import read_config, resolve
from timm_linop.structure import Structure

NAME = "test_resnet"
SLIM = "layer1.0.conv1.weight"
# A slim form without a pruner: eight of the 32 channels inside one block.
SHAPES = {
    SLIM: [8, 32, 3, 3],
    **{f"layer1.0.bn1.{key}": [8] for key in ("weight", "bias", "running_mean", "running_var")},
    "layer1.0.conv2.weight": [32, 8, 3, 3],
}
STRUCTURE = {"version": 1, "base": NAME, "shapes": SHAPES, "attributes": {}}
ROOM = 400_000  # kB that this process may grow by while a file is refused
FUZZ_LIMIT = 256 * 2**20

Change = Callable[[dict[str, Any]], Any]
Fuzz = Callable[[int, Callable[[st.DataObject], None]], None]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(f"linop_{NAME}", pruned=STRUCTURE, rate=0, num_classes=5).eval()
    return timm_linop.save(model, tmp_path_factory.mktemp("saved") / "slim")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


@pytest.fixture
def peak() -> Iterator[None]:
    """What is refused takes no memory: the process's peak stays where it was."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak of earlier tests is forgotten
    before = kilobytes("VmRSS")
    yield
    assert kilobytes("VmHWM") - before < ROOM


def kilobytes(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1])


def pruned_door(folder: Path) -> nn.Module:
    return timm.create_model(f"linop_{NAME}", pruned=str(folder), rate=0)


def timms_door(folder: Path) -> nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True)


BOTH = pytest.mark.parametrize("door", [pruned_door, timms_door])


def change_config(folder: Path, change: Change) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def refused(door: Callable[[Path], nn.Module], folder: Path, says: str) -> None:
    with pytest.raises(LinOPError, match=says) as caught:
        door(folder)
    assert len(str(caught.value)) < 600


# --- one by one, at both doors ------------------------------------------------------------------


@BOTH
def test_the_folder_itself_is_right(folder: Path, door: Any) -> None:
    assert door(folder).layer1[0].conv1.weight.shape == (8, 32, 3, 3)


def shape(size: Any) -> Change:
    return lambda c: c["model_args"]["pruned"]["shapes"].update({SLIM: size})


def attribute(module: str, **values: Any) -> Change:
    return lambda c: c["model_args"]["pruned"]["attributes"].update({module: values})


def argument(**values: Any) -> Change:
    return lambda c: c["model_args"].update(values)


def setting(**values: Any) -> Change:
    return lambda c: c["pretrained_cfg"].update(values)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


CONFIGS: dict[str, tuple[Change, str]] = {
    "foreign attribute": (attribute("conv1.0", stride=1), "would set 'stride'; only"),
    "method": (attribute("", forward=1), "would set 'forward'; only"),
    "dunder attribute": (attribute("conv1.0", __class__=1), "would set '__class__'; only"),
    "dunder module": (attribute("__init__", groups=1), "has no module '__init__'"),
    "path as module": (attribute("../../etc/passwd", groups=1), "no name of a module or tensor"),
    "path as tensor": (
        lambda c: c["model_args"]["pruned"]["shapes"].update({"/etc/passwd": [1]}),
        "no name of a module or tensor",
    ),
    "dunder argument": (argument(__class__=1), "'__class__' is no name of an argument"),
    "path as argument": (argument(**{"../x": 1}), "is no name of an argument"),
    "checkpoint_path": (argument(checkpoint_path="/x.pth"), "'checkpoint_path', which names a"),
    "file": (argument(file="/x.pth"), "may not hold 'file', which names a place"),
    "device": (argument(device="cuda"), "may not hold 'device', which names a place"),
    "pruned from a repo": (argument(pruned="hf-hub:eve/x"), "names a place outside"),
    "other weights": (setting(custom_load="hf"), "may not hold custom_load"),
    "other weights' file": (setting(hf_hub_filename="x.bin"), "may not hold hf_hub_filename"),
    "negative size": (shape([-8, 32, 3, 3]), r"\[-8, 32, 3, 3\], not a list of sizes"),
    "huge size": (shape([10**12, 32, 3, 3]), "pruning only makes it smaller"),
    "float size": (shape([8.0, 32, 3, 3]), "not a list of sizes"),
    "NaN size": (shape([float("nan"), 32, 3, 3]), "not a list of sizes"),
    "many axes": (shape([8] * 9), "not a list of sizes"),
    "NaN argument": (argument(drop_rate=float("nan")), "drop_rate=nan is no size"),
    "infinite argument": (argument(drop_rate=float("inf")), "drop_rate=inf is no size"),
    "negative argument": (argument(num_classes=-5), "num_classes=-5 is no whole number"),
    "float argument": (argument(num_classes=5.5), r"num_classes=5\.5 is no whole number"),
    "huge argument": (argument(layers=[10**9, 1, 1, 1]), "no size a model can have"),
    "long text": (argument(global_pool="x" * 10**6), "no plain, short value"),
    "long list": (argument(layers=[1] * 2000), "no plain, short value"),
    "deep argument": (argument(layers=nested(9)), "no plain, short value"),
    "huge window": (argument(window_size=1000), "no size a model can have"),
    "wide": (argument(channels=[90_000, 90_000, 8, 8]), rf"over 4,294,967,296 .*{VARIABLE}="),
    "many layers": (argument(layers=[10**6, 1, 1, 1]), rf"over 4,294,967,296 .*{VARIABLE}="),
    "huge image": (argument(img_size=100_000), "16,777,216 numbers that an image may have"),
    "huge input": (setting(input_size=[3, 9000, 9000]), "16,777,216 numbers that an image may"),
    "huge probe": (
        lambda c: c["model_args"]["probe"].update(input_size=[3, 9000, 9000]),
        "probe holds no seed, image size and logits",
    ),
    "shapes against tensors": (shape([7, 32, 3, 3]), "contradict|does not fit|not fit"),
    "nesting": (argument(layers=nested(40)), "nested more than 32 deep|no plain, short value"),
    "deep structure": (shape(nested(40)), "nested more than 32 deep"),
    "size in bytes": (argument(pad=["x" * 100] * 900), "no plain, short value|cannot be built"),
    "expansion": (argument(rate="3"), "says nothing of an expansion"),
    "seed": (argument(seed=[1]), "says nothing of an expansion"),
}


@BOTH
@pytest.mark.parametrize("item", CONFIGS)
@pytest.mark.usefixtures("peak")
def test_a_hostile_config(folder: Path, door: Any, item: str) -> None:
    change, says = CONFIGS[item]
    change_config(folder, change)
    refused(door, folder, says)


@BOTH
def test_another_architectures_name(folder: Path, door: Any) -> None:
    change_config(folder, lambda c: c.update(architecture="linop_test_vit"))
    refused(door, folder, r"is (of )?a test_resnet")
    change_config(folder, lambda c: c.update(architecture="linop_nothing"))
    with pytest.raises(LinOPError if door is pruned_door else RuntimeError, match="nothing"):
        door(folder)


@BOTH
def test_an_architecture_over_the_limit(
    folder: Path, door: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "10000000")
    refused(
        door, folder, rf"over 10,000,000 bytes .* if you trust it, raise the limit: {VARIABLE}="
    )
    monkeypatch.setenv(VARIABLE, "1000000000")
    door(folder)
    monkeypatch.setenv(VARIABLE, "much")
    refused(door, folder, "'much' is no number of bytes")


def test_an_expansion_over_the_limit(folder: Path) -> None:
    change_config(folder, argument(rate=100_000))
    refused(timms_door, folder, r"ResNet expanded at rate 100000 would take over 4,294,967,296")


@BOTH
@pytest.mark.parametrize("key", ["architecture", "rate", "version", "fc.weight"])
def test_a_thing_told_twice(folder: Path, door: Any, key: str) -> None:
    path = folder / "config.json"
    change_config(folder, lambda c: c["model_args"]["pruned"]["shapes"].update({"fc.weight": [1]}))
    text = path.read_text()
    assert text.count(f'"{key}": ') >= 1
    start = text.index(f'"{key}": ')
    path.write_text(f'{text[:start]}"{key}": 0, {text[start:]}')
    refused(door, folder, f"is no JSON .*'{key}' is told twice")


@BOTH
@pytest.mark.usefixtures("peak")
def test_hundreds_of_megabytes_of_json(folder: Path, door: Any) -> None:
    path = folder / "config.json"
    if door is pruned_door:  # refused before it is read
        with path.open("r+b") as file:
            file.truncate(100_000_000)
    else:  # timm reads it before we are asked; we refuse it before a model is built
        path.write_text(path.read_text() + " " * 100_000_000)
    refused(door, folder, r"100,\d{3},\d{3} bytes, over 20,000,000; no model needs that")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 10**6, b"\xff\xfe"])
def test_what_timm_itself_chokes_on_at_its_own_door(folder: Path, text: str | bytes) -> None:
    """Recorded: timm reads config.json before any of our code runs, and its errors are its own."""
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(pruned_door, folder, "is no JSON|holds no JSON object")
    with pytest.raises((ValueError, TypeError, AttributeError, KeyError, RecursionError)) as caught:
        timms_door(folder)
    assert not isinstance(caught.value, LinOPError)


WEIGHTS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda w: w.pop(SLIM), SLIM),
    "missing head": (lambda w: w.pop("fc.bias"), r"fc\.bias|no tensor"),
    "extra": (lambda w: w.update(extra=torch.zeros(3)), "extra"),
    "reshaped": (lambda w: w.update({SLIM: torch.zeros(9, 32, 3, 3)}), "mismatch"),
    "dense": (lambda w: w.update({SLIM: torch.zeros(32, 32, 3, 3)}), "mismatch"),
    "scalar": (lambda w: w.update({SLIM: torch.tensor(1.0)}), "mismatch"),
    "empty and endless": (lambda w: w.update({"fc.weight": torch.zeros(10**12, 0)}), ""),
}


@BOTH
@pytest.mark.parametrize("item", WEIGHTS)
@pytest.mark.usefixtures("peak")
def test_hostile_tensors(folder: Path, door: Any, item: str) -> None:
    change, says = WEIGHTS[item]
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    refused(door, folder, says)


@BOTH
def test_a_folder_of_pickles(folder: Path, door: Any) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(door, folder, r"holds no (slim model|model\.safetensors)")


@BOTH
@pytest.mark.usefixtures("peak")
def test_a_file_larger_than_the_limit(folder: Path, door: Any) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(limit() + 1)  # sparse: takes no room
    refused(door, folder, rf"model\.safetensors would take over 4,294,967,296 .*{VARIABLE}=")


class Blank:
    """Unpickles to as many bytes as it likes."""

    def __reduce__(self) -> Any:
        return bytearray, (10**10,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.usefixtures("peak")
def test_a_pickle_that_asks_for_blank_memory(tmp_path: Path, zipped: bool) -> None:
    torch.save({"a": Blank()}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="holds a bytearray, which is no tensor"):
        resolve(tmp_path / "x.pth", NAME)


@pytest.mark.usefixtures("peak")
def test_a_zip_file_that_unpacks_to_gigabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(20 * 2**20))
    torch.save({"fc.weight": torch.zeros(6 * 2**20)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for part in plain.infolist():
            bomb.writestr(part.filename, plain.read(part))
    assert (tmp_path / "bomb.pth").stat().st_size < 100_000
    with pytest.raises(CheckpointError, match=r"bomb\.pth unpacked would take over 20,971,520"):
        resolve(tmp_path / "bomb.pth", NAME)


# --- fuzz ---------------------------------------------------------------------------------------

NAMES = [
    *("", "__class__", "__dict__", "__init__", "../x", "/etc/passwd", "a.b.c", "\ud800", "\0"),
    *("layer1", "conv1.0", "fc", "fc.weight", SLIM, "layer1.0", "layer2.0.conv1", "weight"),
    *("groups", "num_heads", "channels", "layers", "stem_chs", "block", "act_layer", "norm_layer"),
    *("img_size", "in_chans", "num_classes", "global_pool", "drop_rate", "output_stride", "width"),
    *("checkpoint_path", "cache_dir", "device", "dtype", "features_only", "out_indices", "pruned"),
    *("rate", "init", "seed", "probe", "pretrained_cfg", "base", "architecture", "model_args"),
    *("input_size", "first_conv", "classifier", "label_offset", "label_names", "custom_load"),
    *("mean", "logits", "version", "shapes", "attributes", "source", "url", "state_dict"),
]
ODD = [
    *(0, -1, 1, 2, 3, 5, 8, 32, 64, 96, 10**6, 10**6 + 1, 10**9, 2**31, 2**63, 2**64, 10**400),
    *(0.0, -0.0, 0.5, 1.5, 8.0, 1e6, 1e308, float("nan"), float("inf"), -float("inf"), True, None),
    *(
        "",
        "x",
        "3",
        "0x10",
        "../../etc/passwd",
        "/dev/zero",
        "hf-hub:eve/x",
        "local-dir:/",
        "__a__",
    ),
    *("x" * 10**5, "\ud800", "\0", "é" * 300, "linop_test_vit", "resnet5O", "vit_7b", "linop_"),
    *([], {}, [[]], [None], [1] * 70, [8, 32, 3, 3], [10**9] * 4, [3, 64, 64], [3, 10**6, 10**6]),
    *({"a": 1}, {"": {}}, {"__class__": 1}, {"groups": 1}, {"groups": [1, 2]}, nested(30)),
    *(nested(40), nested(200), {"weight": [None, 96]}, [float("nan")] * 3, ["conv1.0", "fc"]),
]
VALUES = st.sampled_from(ODD) | st.integers(-3, 200) | st.integers() | st.floats() | st.text()
VALUES |= st.lists(st.sampled_from(ODD), max_size=4)
VALUES |= st.dictionaries(st.sampled_from(NAMES), st.sampled_from(ODD), max_size=3)
KEYS = st.sampled_from(NAMES) | st.text(max_size=6)


def holders(value: Any) -> Iterator[Any]:
    """Every object and list in some JSON."""
    if isinstance(value, dict | list):
        yield value
        for part in list(value.values() if isinstance(value, dict) else value):
            yield from holders(part)


def mutate(value: Any, draw: Any) -> Any:
    """Replace, delete, insert or rename a few things anywhere in some JSON."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        # Not into what was put in: that nests deeper than Python itself may follow.
        places = [place for place in holders(value) if place][:200]
        place = draw(st.sampled_from(places)) if places else value
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys)) if keys else None
        match draw(
            st.sampled_from(["replace", "replace", "replace", "insert", "delete", "rename"])
        ):
            case "replace" if keys:
                place[key] = copy.deepcopy(draw(VALUES))
            case "delete" if keys:
                del place[key]
            case "rename" if isinstance(place, dict) and keys:
                place[draw(KEYS)] = place.pop(key)
            case _ if isinstance(place, dict):
                place[draw(KEYS)] = copy.deepcopy(draw(VALUES))
            case _:
                place.append(copy.deepcopy(draw(VALUES)))
    return value


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over the limit is to be seen in this process's peak."""
    monkeypatch.setenv(VARIABLE, str(FUZZ_LIMIT))


@pytest.fixture(params=[5, pytest.param(1, marks=pytest.mark.slow)], ids=["a fifth", "all"])
def fuzz(request: pytest.FixtureRequest, small_limit: None, peak: None) -> Fuzz:
    """Try something on so many examples: all of them among the slow tests, else a fifth."""

    def run(examples: int, attempt: Callable[[st.DataObject], None]) -> None:
        known = [HealthCheck.too_slow, HealthCheck.data_too_large]
        number = settings(max_examples=examples // request.param, suppress_health_check=known)
        number(given(st.data())(attempt))()

    return run


@contextmanager
def a_model_or_our_error() -> Iterator[None]:
    try:
        yield
    except LinOPError as error:
        event(type(error).__name__)
        assert 0 < len(str(error)) < 1000
    else:
        event("a model")


VIT = {
    "version": 1,
    "base": "test_vit",
    "shapes": {"blocks.0.mlp.fc1.weight": [100, 64], "blocks.0.mlp.fc1.bias": [100]},
    "attributes": {"blocks.0.attn": {"num_heads": 2}},
}


def meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


@pytest.mark.parametrize(("right", "examples"), [(STRUCTURE, 900), (VIT, 400)], ids=["cnn", "vit"])
def test_mutated_structures(right: dict[str, Any], examples: int, fuzz: Fuzz) -> None:
    dense = meta(right["base"])

    def attempt(choices: st.DataObject) -> None:
        mutant = mutate(right, choices.draw)
        with a_model_or_our_error():
            structure = Structure.from_dict(mutant)
            if structure.base == right["base"]:
                structure.build(copy.deepcopy(dense))

    fuzz(examples, attempt)


def test_mutated_configs(folder: Path, saved: Path, fuzz: Fuzz) -> None:
    def attempt(choices: st.DataObject) -> None:
        mutant = mutate(json.loads((saved / "config.json").read_text()), choices.draw)
        (folder / "config.json").write_text(json.dumps(mutant))
        with a_model_or_our_error():
            model = pruned_door(folder)
            assert sum(p.numel() for p in model.parameters()) < FUZZ_LIMIT / 4

    fuzz(350, attempt)


def test_mutated_configs_at_timms_own_door(folder: Path, saved: Path, fuzz: Fuzz) -> None:
    """Where none of our code has been reached, the error is timm's; from there on it is ours."""

    def attempt(choices: st.DataObject) -> None:
        mutant = mutate(json.loads((saved / "config.json").read_text()), choices.draw)
        (folder / "config.json").write_text(json.dumps(mutant))
        with a_model_or_our_error():
            try:
                timms_door(folder)
            except Exception as error:
                files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
                if any("timm_linop" in Path(file).parts[-2] for file in files):
                    raise
                event(f"timm's own {type(error).__name__}")

    fuzz(150, attempt)


def test_mutated_json(folder: Path, saved: Path, fuzz: Fuzz) -> None:
    def attempt(choices: st.DataObject) -> None:
        text = (saved / "config.json").read_bytes()
        place = choices.draw(st.integers(0, len(text)))
        length = choices.draw(st.sampled_from([0, 1, 5, len(text)]))
        piece = st.sampled_from(
            [b"[" * 5000, b'{"a":' * 5000, b"NaN", b"9" * 5000, b'"a":1,"a":2,']
        )
        inserted = choices.draw(piece | st.binary(max_size=4))
        path = folder / "config.json"
        path.write_bytes(text[:place] + inserted + text[place + length :])
        with a_model_or_our_error():
            read_config(path)
            resolve(folder, NAME)

    fuzz(250, attempt)


def test_mutated_safetensors(folder: Path, saved: Path, fuzz: Fuzz) -> None:
    """Bytes flipped, cut, put in; and a header whose shapes, types and offsets lie."""

    def attempt(choices: st.DataObject) -> None:
        whole = (saved / "model.safetensors").read_bytes()
        length = int.from_bytes(whole[:8], "little")
        if choices.draw(st.booleans()):
            header = json.dumps(
                mutate_header(json.loads(whole[8 : 8 + length]), choices.draw)
            ).encode()
            mutant = len(header).to_bytes(8, "little") + header + whole[8 + length :]
        else:
            place = choices.draw(st.integers(0, length + 8) | st.integers(0, len(whole)))
            cut = choices.draw(st.sampled_from([0, 0, 1, 8, len(whole)]))
            mutant = whole[:place] + choices.draw(st.binary(max_size=8)) + whole[place + cut :]
        (folder / "model.safetensors").write_bytes(mutant)
        with a_model_or_our_error():
            source = resolve(folder, NAME)
            held = sum(t.numel() * t.element_size() for t in (source.weights or {}).values())
            assert held <= len(mutant)
            if choices.draw(st.integers(0, 3)) == 0:
                pruned_door(folder)

    fuzz(300, attempt)


def mutate_header(header: dict[str, Any], draw: Any) -> dict[str, Any]:
    """Lie about one tensor of a safetensors file, or mutate its header anyhow."""
    entry = header[draw(st.sampled_from([name for name in header if name != "__metadata__"]))]
    match draw(st.sampled_from(["shape", "dtype", "offsets", "any"])):
        case "shape":
            sizes = st.sampled_from([0, 1, 3, 8, 32, 10**12, 2**63, -1])
            entry["shape"] = draw(st.lists(sizes, max_size=7))
        case "dtype":
            entry["dtype"] = draw(st.sampled_from(["F64", "F16", "BF16", "I64", "BOOL", "F4", ""]))
        case "offsets":
            offset = st.sampled_from([0, 4, 10**4, 2**62, -4])
            entry["data_offsets"] = draw(st.lists(offset, min_size=1, max_size=3))
        case _:
            return mutate(header, draw)
    return header


def test_mutated_tensors(folder: Path, saved: Path, fuzz: Fuzz) -> None:
    """Tensors renamed, put in, taken out, of another shape or type; as .safetensors and .pth."""

    def attempt(choices: st.DataObject) -> None:
        draw = choices.draw
        weights: dict[Any, Any] = load_file(saved / "model.safetensors")
        for _ in range(draw(st.integers(1, 2))):
            name = draw(st.sampled_from(list(weights)))
            sizes = draw(st.lists(st.integers(0, 40), max_size=4))
            kind = draw(st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool]))
            match draw(st.sampled_from(["rename", "extra", "missing", "shape", "type"])):
                case "rename":
                    weights[draw(KEYS)] = weights.pop(name)
                case "extra":
                    weights[draw(KEYS)] = torch.zeros(sizes)
                case "missing":
                    del weights[name]
                case "shape":
                    weights[name] = torch.zeros(sizes)
                case "type":
                    weights[name] = weights[name].to(kind)
        pruned = folder
        if draw(st.booleans()):
            pruned = folder / "weights.pth"
            torch.save(weights, pruned)
        else:
            names = {name.encode("utf-8", "replace").decode(): weights[name] for name in weights}
            (folder / "model.safetensors").write_bytes(save(names))
        with a_model_or_our_error():
            pruned_door(pruned)

    fuzz(150, attempt)


OTHERS = [
    *(
        [],
        {},
        3,
        "x",
        None,
        {"a": 1},
        {1: torch.zeros(1)},
        {"state_dict": 3},
        {"model": {}},
        (1, 2),
    ),
    *({"fc.weight": None}, {"fc.weight": [1.0]}, {"fc.weight": {"a": torch.zeros(1)}}),
    *({"fc.weight": torch.zeros(1).expand(10**9, 10**3)}, {"fc.weight": torch.zeros(10**12, 0)}),
    *({"fc.weight": torch.zeros(5, 96, device="meta")}, {"fc.weight": torch.zeros(5, 96).t()}),
    *({"fc.weight": Blank()}, {"state_dict": {"fc.weight": Blank()}}, nn.Linear(2, 2), Path("x")),
]


def test_mutated_pickles(folder: Path, fuzz: Fuzz) -> None:
    def attempt(choices: st.DataObject) -> None:
        content = choices.draw(st.sampled_from(OTHERS))
        path = folder / choices.draw(
            st.sampled_from(["x.pth", "x.pt", "x.bin", "x.safetensors", "x"])
        )
        kind = choices.draw(st.sampled_from(["zip", "legacy", "pickle"]))
        if kind == "pickle" and not isinstance(content, nn.Module):
            path.write_bytes(pickle.dumps(str(content), protocol=2))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
        whole = path.read_bytes()
        place = choices.draw(st.integers(0, len(whole)))
        cut = choices.draw(st.sampled_from([0, 0, 1, len(whole)]))
        path.write_bytes(whole[:place] + choices.draw(st.binary(max_size=4)) + whole[place + cut :])
        with pytest.raises(LinOPError) as caught:
            resolve(path, NAME)
        assert 0 < len(str(caught.value)) < 1000

    fuzz(150, attempt)
