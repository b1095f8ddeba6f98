"""What a card tells beyond results: exactness, weak classes, other runs, methods, figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.test_card import DIGITS, FULL, LINOP, results
from timm_linop.card import ClassResult, Contraction, Figure, render


def test_a_card_tells_what_else_was_measured():
    text = render(
        replace(
            FULL,
            results=(replace(LINOP, top5=99.5),),
            contraction=Contraction(1.54e-7, 32),
            weakest=(ClassResult("a|b", 36, 30), ClassResult("9", 40, 39)),
            differences={"vanilla": {"lr": (0.02, None)}, "expanded": {}},
        )
    )
    assert results(text)[0][1:3] == ["Accuracy (%)", "Top\u20115 (%)"]
    assert "the logits of 32 images moved by 1.5e-07 of their norm, which is rounding." in text
    assert "- Recognised least on the validation images: a\\|b (30 of 36), 9 (39 of 40).\n" in text
    assert "Vanilla fine-tuning was run with `lr=0.02` where this model had `null`.\n" in text
    assert "Over-parameterisation without" not in text
    few = replace(FULL, dataset=replace(DIGITS, classes=("owl", "cat")), results=(LINOP,))
    assert "Top\u20115" not in render(few)
    exact = render(replace(FULL, contraction=Contraction(0.0, 32)))
    assert "the logits of 32 images did not move by a single bit." in exact


@pytest.mark.parametrize(
    ("arm", "said", "cited"),
    [
        ("linop, KD", "the same probabilities (distillation of logits).", "qian tung hinton"),
        ("vanilla, KD", "the same probabilities as its dense teacher", "hinton"),
        ("vanilla, mixup", "Images and their labels were mixed in pairs (mixup).", "zhang"),
        ("vanilla, KD, muon, mixup", "(distillation of logits). Images and", "hinton zhang"),
        ("vanilla, KD, refined", "six versions of each image, while their labels", "hinton luo"),
        ("expandnets", "from newly drawn weights: only its shape", "qian"),
        ("scratch, distilled", "It was then trained on digits, from newly drawn", "tung"),
        ("expanded dense", "An unpruned `resnet18`", "qian"),
    ],
)
def test_each_arm_is_told_and_its_methods_are_cited(arm, said, cited):
    text = render(replace(FULL, arm=arm, results=()))
    assert said in text
    assert f"(arm `{arm}`)" not in text
    found = [name for name in ("qian", "tung", "hinton", "zhang", "luo") if f"{{{name}" in text]
    assert " ".join(found) == cited
    assert "@misc{base,\n  title        = {Base model: timm/resnet18.a1_in1k}," in text


def test_a_figure_may_be_narrower_than_the_text():
    figure = Figure("figures/a b.png", '"><script>', 520)
    assert ('<img src="figures/a%20b.png" alt="&quot;&gt;&lt;script&gt;" width="520">') in render(
        replace(FULL, figures=(figure,))
    )
