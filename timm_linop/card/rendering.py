"""A card's Markdown: the Hub's metadata, then the text of the template.

Names come from data sets and folders of others: all that is printed passes ``markdown.text``.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from timm_linop import markdown
from timm_linop.card.arms import label, methods_of
from timm_linop.card.data import CardData, Result
from timm_linop.card.words import columns, margin, verdict

_ENVIRONMENT = Environment(
    # In a wheel the template lies inside the package, in a checkout beside it.
    loader=FileSystemLoader([Path(__file__).parents[up] / "hub_cards" for up in (1, 2)]),
    undefined=StrictUndefined,
    autoescape=True,
    finalize=markdown.text,
    trim_blocks=True,
)
for _name in ("attribute", "code", "command", "count", "link", "literal"):
    _ENVIRONMENT.filters[_name] = getattr(markdown, _name)
_ENVIRONMENT.filters["verbatim"] = Markup
_ENVIRONMENT.filters["label"] = label
_ENVIRONMENT.tests["known_arm"] = lambda arm: label(arm) != arm


def render(data: CardData) -> str:
    """Write a model's card: the Hub's metadata, then the text.

    Example:
        >>> card = render(CardData("tiny", "resnet18", "pruned", repo="me/tiny", license="mit"))
        >>> card.splitlines()[:4], "# tiny" in card
        (['---', 'library_name: timm', 'license: mit', 'pipeline_tag: image-classification'], True)
    """
    own = data.row(data.arm)
    body = _ENVIRONMENT.get_template("model_card.md.j2").render(
        data=data,
        arm=data.arm.lower(),
        does=methods_of(data.arm),
        compared=[methods_of(row.arm) for row in data.results],
        columns=columns(data),
        verdict=verdict(data, own) if own else [],
        margin=margin(data.images, own.accuracy) if own else None,
    )
    return f"---\n{_metadata(data, own).to_yaml()}\n---\n\n{body}\n"


def free_text(card: str) -> dict[str, str]:
    r"""Read the sections of a card that its owner may edit, to hand them to the next card.

    Example:
        >>> free_text("<!-- free: notes -->\nBeware of owls.\n<!-- /free: notes -->\n")
        {'notes': 'Beware of owls.'}
    """
    sections = re.finditer(r"^<!-- free: (\w+) -->\n(.*?)^<!-- /free: \1 -->$", card, re.M | re.S)
    return {name: text.strip() for name, text in (section.groups() for section in sections)}


def _metadata(data: CardData, own: Result | None) -> ModelCardData:
    """Fill in the Hub's form. The accuracy is a share there, as the Hub's metric defines it."""
    does, dataset, results = methods_of(data.arm), data.dataset, None
    if own and own.accuracy is not None and dataset:
        name = markdown.public(dataset.name)
        results = [
            EvalResult(
                task_type=data.task,
                dataset_type=dataset.hub_id or re.sub(r"[^\w.-]+", "-", name.lower()),
                dataset_name=name,
                dataset_split=markdown.public(dataset.measured_on),
                metric_type="accuracy",
                metric_name="Top-1 accuracy",
                metric_value=round(own.accuracy / 100, 6),
            )
        ]
    tags = ["timm", "timm_linop", *(["pruned"] if data.pruning or not does.dense else [])]
    tags += [*(["linop"] if does.expanded else []), *data.tags]
    return ModelCardData(
        library_name="timm",
        license=data.license and markdown.public(data.license),
        base_model=data.teacher_id,
        base_model_relation=data.teacher_id and "finetune",
        pipeline_tag=data.task,
        datasets=[dataset.hub_id] if dataset and dataset.hub_id else None,
        metrics=["accuracy"] if results else None,
        tags=[markdown.public(tag) for tag in tags],
        model_name=markdown.public(data.name) if results else None,
        eval_results=results,
    )
