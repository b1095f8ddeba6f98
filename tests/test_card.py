"""Model cards: read back by the Hub's own reader, compiled, and fed with hostile names."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from jinja2 import DictLoader, UndefinedError

from timm_linop.card import CardData, Dataset, Figure, Pruning, Result, free_text, render, rendering
from timm_linop.errors import LinOPError, RecipeError

DIGITS = Dataset("digits", tuple("0123456789"), {"train": 1437, "validation": 360})
DENSE = Result("dense", 94.17, 11_181_642, 37_220_352, 0.8, 44_800_000, 200.0)
PRUNED = Result("pruned", 31.0, 1_190_000, 5_000_000, 0.2)
VANILLA = Result("vanilla", 81.9, 1_190_000, 5_000_000, 0.2, 4_800_000, 90.0)
LINOP = Result("linop", 93.1, 1_190_000, 5_000_000, 0.2, 4_800_000, 130.0)

FULL = CardData(
    "resnet18-slim",
    "resnet18",
    "linop",
    repo="me/resnet18-slim",
    license="apache-2.0",
    teacher_id="timm/resnet18.a1_in1k",
    dataset=replace(DIGITS, hub_id="me/digits"),
    tags=("digits",),
    results=(DENSE, PRUNED, VANILLA, LINOP),
    pruning=Pruning("magnitude", 11_181_642, 1_190_000, 0.7, {"conv1": (64, 20), "fc": (10, 10)}),
    figures=(Figure("figures/training curves.png", "Losses and accuracy"),),
    input_size=(1, 32, 32),
    mean=(0.5,),
    std=(0.25,),
    hyperparameters={"optim.lr": 0.01, "expand.rate": 3},
    defaults={"optim.momentum": 0.9, "distill.layers": None},
    machine={"cpu": "Some Processor", "threads": "2", "device": "cpu"},
    versions={"torch": "2.15.0", "timm": "1.0.31"},
    seed=7,
    command="accelerate launch train.py --config digits.yaml",
)
THIN = [
    CardData("tiny", "resnet18", "dense"),
    CardData("tiny", "resnet18", "pruned", pruning=Pruning("magnitude", 1000, 250)),
    CardData("tiny", "resnet18", "vanilla", dataset=DIGITS, results=(replace(VANILLA, macs=None),)),
    CardData("tiny", "resnet18", "my own way", teacher="resnet50"),
    CardData("tiny", "resnet18", "linop", results=(Result("linop"),), machine={"device": "cpu"}),
]


def parts(text: str) -> tuple[dict, str]:
    """Read a card as the Hub does."""
    card = ModelCard(text)
    return card.data.to_dict(), card.text


def snippet(text: str) -> str:
    return re.search(r"```python\n(.*?)\n```", text, re.S)[1]


def table(text: str, head: str) -> list[list[str]]:
    """Read the rows of a Markdown table, its cells parted at pipes that are not escaped."""
    lines = text[text.index(head) :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def results(text: str) -> list[list[str]]:
    return table(text, "| | ")


def test_the_hub_reads_the_metadata():
    about = ModelCard(render(FULL)).data
    assert about.library_name == "timm"
    assert about.pipeline_tag == "image-classification"
    assert about.license == "apache-2.0"
    assert about.base_model == "timm/resnet18.a1_in1k"
    assert about["base_model_relation"] == "finetune"
    assert about.datasets == ["me/digits"]
    assert about.metrics == ["accuracy"]
    assert about.tags == ["timm", "timm_linop", "pruned", "linop", "digits"]
    assert about.model_name == "resnet18-slim"
    (result,) = about.eval_results
    assert (result.task_type, result.dataset_type) == ("image-classification", "me/digits")
    assert (result.dataset_name, result.dataset_split) == ("digits", "validation")
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.931)  # this model's alone


@pytest.mark.parametrize("data", THIN, ids=lambda data: data.arm)
def test_what_is_not_known_is_not_claimed(data):
    about, _ = parts(render(data))
    assert not {"license", "base_model", "base_model_relation", "datasets"} & set(about)
    assert ("model-index" in about) == ("metrics" in about) == (data.arm == "vanilla")
    assert ("pruned" in about["tags"]) == (data.arm != "dense")
    assert ("linop" in about["tags"]) == (data.arm == "linop")


@pytest.mark.parametrize("data", [FULL, *THIN], ids=lambda data: data.arm)
def test_a_card_has_no_holes(data):
    _, text = parts(render(data))
    assert not re.search(r"\bNone\b|More Information|Undefined|\{\{|%\}|nan\b| \.|,,| \(\)", text)
    assert not re.search(r"\n\n\n|[ \t]\n", text)
    # A heading is followed by words, not by the next heading or the end.
    headings = [line for line in text.splitlines() if re.match("#+ ", line) and "```" not in line]
    assert headings[0] == f"# {data.name}"
    for block, following in zip(text.split("\n\n"), text.split("\n\n")[1:], strict=False):
        assert not (re.match("#+ ", block.strip()) and re.match("#+ |$", following.strip())), block
    assert text.count("<details>") == text.count("</details>")


def test_a_dense_card_speaks_of_no_pruning():
    _, text = parts(render(THIN[0]))
    assert "unpruned `resnet18`" in text
    assert "LinOP" not in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## How to use it",
        "## Limits",
        "## Licence",
        "## Citation",
    ]


def test_a_pruned_card_says_that_it_is_a_start():
    _, text = parts(render(THIN[1]))
    assert "magnitude pruning removed 75.0 % of its parameters (1K became 250)" in text
    assert "has not been fine-tuned" in text
    assert "Training" not in text


def test_a_vanilla_card_claims_no_distillation():
    _, text = parts(render(THIN[2]))
    assert "plainly, without over-parameterisation or distillation" in text
    assert "teacher" not in text
    assert "Tung" not in text
    assert results(text)[0] == ["", "Accuracy (%)", "Parameters", *results(text)[0][3:]]
    assert "MACs" not in text  # nobody counted them: no empty column


def test_a_teacher_that_is_not_on_the_hub_is_named_but_no_base_model():
    about, text = parts(render(replace(FULL, teacher_id=None, teacher="/home/me/runs/dense")))
    assert "base_model" not in about
    assert "dense teacher `dense`" in text


@pytest.mark.parametrize("data", [FULL, *THIN], ids=lambda data: data.arm)
def test_the_snippet_compiles_and_begins_with_the_plugin(data):
    code = snippet(render(data))
    assert code.startswith("import timm, timm_linop")
    calls = {ast.unparse(n.func): n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call)}
    where = ast.literal_eval(calls["timm.create_model"].args[0])
    assert where == ("hf-hub:me/resnet18-slim" if data.repo else "local-dir:slim")
    assert "timm.data.resolve_model_data_config" in calls
    assert ast.literal_eval(calls["Image.open('image.png').convert"].args[0]) == (
        "L" if data is FULL else "RGB"
    )


def test_the_snippet_names_few_classes_and_looks_up_many():
    def assigned(classes):
        tree = ast.parse(snippet(render(replace(FULL, dataset=replace(DIGITS, classes=classes)))))
        named = {ast.unparse(n.targets[0]): n.value for n in tree.body if isinstance(n, ast.Assign)}
        return named["classes"]

    few = ("night owl", '"it\'s"', "```", "<!-- /free: notes -->", "日本語", "\\")
    assert ast.literal_eval(assigned(few)) == list(few)
    assert ast.unparse(assigned(tuple(map(str, range(21))))) == (
        "model.pretrained_cfg['label_names']"
    )


def test_the_table_tells_what_was_measured():
    head, rule, *rows = results(render(FULL))
    assert head[1:4] == ["Accuracy (%)", "Parameters", "MACs"]
    assert rule[1:] == ["--:"] * 6
    assert rows == [
        ["Dense", "94.17", "11.18M", "37.22M", "0.8", "44.8MB", "3 min 20 s"],
        ["Pruned, not fine-tuned", "31.00", "1.19M", "5M", "0.2", "–", "–"],
        ["Vanilla fine-tuning", "81.90", "1.19M", "5M", "0.2", "4.8MB", "1 min 30 s"],
        ["**LinOP (this model)**", "93.10", "1.19M", "5M", "0.2", "4.8MB", "2 min 10 s"],
    ]
    text = render(FULL)
    assert "Latency measured on: cpu Some Processor, threads 2, device cpu." in text
    assert "1,437 train, 360 validation images" in text
    assert table(text, "| Layer |")[2:] == [["`conv1`", "64", "20"], ["`fc`", "10", "10"]]


@pytest.mark.parametrize(
    ("vanilla", "images", "said"),
    [
        (81.9, 360, "Vanilla fine-tuning of the same pruned model reached 81.90 %, "
                    "11.20 points less."),
        # 1.96 sqrt((93.1 * 6.9 + 92.1 * 7.9) / 360) = 3.82
        (92.1, 360, "1.00 points less; on 360 images 3.8 points can be chance, "
                    "so no gain is shown."),
        (92.1, None, "reached 92.10 %, 1.00 points less."),
        (93.1, 360, "LinOP did not help here: vanilla fine-tuning of the same pruned model reached "
                    "93.10 %, the same."),
        (94.0, 360, "LinOP did not help here: vanilla fine-tuning of the same pruned model reached "
                    "94.00 %, 0.90 points more."),
    ],
)  # fmt: skip
def test_the_comparison_is_honest(vanilla, images, said):
    splits = {"validation": images} if images else {}
    rows = (DENSE, replace(VANILLA, accuracy=vanilla), LINOP)
    text = render(replace(FULL, results=rows, dataset=replace(DIGITS, splits=splits)))
    assert said in text
    assert (
        "The dense model reaches 94.17 %, 1.07 points more, "
        "with 9.4 times the parameters and 7.4 times the multiply-adds."
    ) in text


def test_a_vanilla_card_tells_that_linop_was_better():
    text = render(replace(FULL, arm="vanilla"))
    assert "LinOP reached 93.10 % from the same start, 11.20 points more." in text


def test_settings_command_and_figures():
    _, text = parts(render(FULL))
    chosen, folded = text.split("<summary>2 settings left at their defaults</summary>")
    assert "- `optim.lr=0.01`\n- `expand.rate=3`" in chosen
    assert "- `optim.momentum=0.9`\n- `distill.layers=null`" in folded
    assert "```bash\naccelerate launch train.py --config digits.yaml\n```" in text
    assert "Seed: 7." in text
    assert "![Losses and accuracy](figures/training%20curves.png)" in text


def test_the_owners_words_survive_the_next_card():
    notes = "## For whom\n\nOwls & <b>cats</b>.\n\n\n| a | b |\n|---|---|\n| `x` | {{ y }} |"
    first = render(FULL).replace("<!-- free: notes -->\n", f"<!-- free: notes -->\n{notes}\n")
    kept = free_text(first)
    assert kept == {"notes": notes, "limits": ""}
    again = render(replace(FULL, free=kept))
    assert again == first
    assert free_text(again) == kept


@pytest.mark.parametrize(
    ("template", "error", "said"),
    [
        ("{{ data.typo }}", UndefinedError, "typo"),
        ("{{ data.seed }}", TypeError, "not known"),
    ],
)
def test_a_template_prints_nothing_unknown(monkeypatch, template, error, said):
    loader = DictLoader({"model_card.md.j2": template})
    monkeypatch.setattr(rendering._ENVIRONMENT, "loader", loader)
    with pytest.raises(error, match=said):
        render(replace(FULL, seed=None))


def test_the_template_lies_where_it_is_looked_for():
    package = Path(rendering.__file__).parents[1]
    looked_in = [str(package / "hub_cards"), str(package.parent / "hub_cards")]
    assert looked_in == rendering._ENVIRONMENT.loader.searchpath
    assert any(Path(folder, "model_card.md.j2").is_file() for folder in looked_in)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"repo": "no-owner"}, "folder="),
        ({"repo": "/home/me/slim"}, "folder="),
        ({"teacher_id": "runs/dense/slim"}, "teacher="),
        ({"teacher_id": "hf-hub:timm/resnet18"}, "owner/name"),
        ({"dataset": replace(DIGITS, hub_id="/data/cats")}, "hub_id="),
    ],
)
def test_ids_that_the_hub_would_refuse(wrong, said):
    with pytest.raises(RecipeError, match=said):
        replace(FULL, **wrong)


@pytest.mark.parametrize("accuracy", [-0.1, 100.1, float("nan")])
def test_an_accuracy_is_a_percentage(accuracy):
    with pytest.raises(LinOPError, match="0 to 100"):
        Result("linop", accuracy)
