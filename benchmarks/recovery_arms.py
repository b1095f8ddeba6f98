"""The arms of the recovery study: flags of train.py, and trials that only the study knows."""

PLAIN, TAUGHT = "fine-tuning", "fine-tuning + KD"
_PAPER = "--gamma 3000 --pairs all --reduction sum"
_SLIM, _WIDE = "--rate 0 --gamma 0", "--rate 3 --gamma 0"
# From the pruned weights: each with and without expansion, which is the question.
TWICE = {
    PLAIN: _SLIM,
    "expanded": _WIDE,
    TAUGHT: f"{_SLIM} --kd-weight 1",
    "expanded + KD": f"{_WIDE} --kd-weight 1",
}
ALONE = (PLAIN, "expanded")  # those of them without a teacher
MUON = {f"{arm}, Muon": f"{flags} --opt muon" for arm, flags in TWICE.items()}
MUON_ALONE, KD_MUON = f"{PLAIN}, Muon", f"{TAUGHT}, Muon"
SIMILARITY = {
    "fine-tuning + SP": f"--rate 0 {_PAPER}",
    "LinOP (paper)": f"--rate 3 --init normal {_PAPER}",
}
# From new weights in the pruned shape.
STRUCTURE = {
    "from scratch": f"--reinit {_SLIM}",
    "ExpandNets": "--reinit --rate 3 --init normal --gamma 0",
    "vanilla distillation": f"--reinit --rate 0 {_PAPER}",
}
# How to expand: ablations without a teacher, beside `expanded`.
_NORMAL = "--gamma 0 --init normal"
EXPANSION = {
    "expanded, normal": f"--rate 3 {_NORMAL}",
    "expanded, balanced": f"{_WIDE} --init balanced",
    "expanded, not the classifier": f"{_WIDE} --exclude fc",
    # By `recovery_trials.TRIALS`.
    "expanded, gain, kappa 0.1": _SLIM,
    "expanded, gain, kappa 1": _SLIM,
    "expanded, branches": _SLIM,
    "expanded, as wide as dense": _SLIM,
    "normalised branches": _SLIM,
    "expanded, normal, half the std": _SLIM,
    "expanded, normal, rate 1": f"--rate 1 {_NORMAL}",
    "expanded, normal, rate 2": f"--rate 2 {_NORMAL}",
    "expanded, normal, rate 5": f"--rate 5 {_NORMAL}",
}
# How to train what is expanded, or not.
_AVERAGED = "--model-ema --model-ema-decay 0.99"
TRAINING = {
    "expanded, decay of the product": f"{_SLIM} --chain-decay none",  # a trial
    "expanded, no decay of factors": f"{_WIDE} --chain-decay none",
    "fine-tuning, warm-up 3": f"{_SLIM} --warmup-epochs 3",
    "expanded, warm-up 3": f"{_WIDE} --warmup-epochs 3",
    "fine-tuning, averaged": f"{_SLIM} {_AVERAGED}",
    "expanded, averaged": f"{_WIDE} {_AVERAGED}",
}
NORMALISED = {"normalised branches + KD": TWICE[TAUGHT]}  # likewise a trial
# SP-KD more gently than in the paper, with and without expansion and KD.
_SP = "--gamma 100 --reduction mean"
GENTLE = {
    "fine-tuning + mean SP": f"--rate 0 {_SP}",
    "expanded + mean SP": f"--rate 3 {_SP}",
    "fine-tuning + KD + mean SP": f"--rate 0 --kd-weight 1 {_SP}",
    "expanded + KD + mean SP": f"--rate 3 --kd-weight 1 {_SP}",
}


def _mixed(*arms: str) -> dict[str, str]:
    """The same arms on images mixed in pairs."""
    return {f"{arm}, mixup": f"{(TWICE | MUON)[arm]} --mixup 0.2" for arm in arms}


# With and without a teacher.
MIXED = _mixed(PLAIN, TAUGHT, KD_MUON)
PLAIN_MIXED, TAUGHT_MIXED, DEFAULT = MIXED  # the last is what --recipe default does
EXPANDING = _mixed("expanded + KD")
(EXPANDED_MIXED,) = EXPANDING
CONTROLLED = (PLAIN, PLAIN_MIXED, DEFAULT)  # the default and its controls
# Likewise, with the default's distillation alone.
DISTILLED = (PLAIN, PLAIN_MIXED, TAUGHT, DEFAULT)
# What the teacher gives: ablations, without expansion.
TEACHER = {
    "fine-tuning + KD 3": f"{_SLIM} --kd-weight 3",
    "fine-tuning + KD 0.3": f"{_SLIM} --kd-weight 0.3",
    "fine-tuning + mean SP, gamma 10": "--rate 0 --gamma 10 --reduction mean",
    "fine-tuning + mean SP, gamma 1000": "--rate 0 --gamma 1000 --reduction mean",
    "fine-tuning + mean SP, all": f"--rate 0 {_SP} --pairs all",
    "fine-tuning + mean SP, stages": f"--rate 0 {_SP} --pairs stages",
    "fine-tuning + mean SP, last": f"--rate 0 {_SP} --pairs last",
    "fine-tuning + sum SP": "--rate 0 --gamma 100 --reduction sum",
    "fine-tuning + mean SP, sub-batch 64": f"--rate 0 {_SP} --sub-batch 64",
}
ARMS = {
    **TWICE,
    **MUON,
    **SIMILARITY,
    **STRUCTURE,
    **EXPANSION,
    **TRAINING,
    **NORMALISED,
    **GENTLE,
    **MIXED,
    **EXPANDING,
    **TEACHER,
}
# Each expanded arm, and the same without expansion.
EXPANDED = {
    "expanded": PLAIN,
    "expanded + KD": TAUGHT,
    "expanded, Muon": MUON_ALONE,
    "expanded + KD, Muon": KD_MUON,
    EXPANDED_MIXED: TAUGHT_MIXED,
    "LinOP (paper)": "fine-tuning + SP",
    "ExpandNets": "from scratch",
    "expanded, warm-up 3": "fine-tuning, warm-up 3",
    "expanded, averaged": "fine-tuning, averaged",
    "expanded + mean SP": "fine-tuning + mean SP",
    "expanded + KD + mean SP": "fine-tuning + KD + mean SP",
}
