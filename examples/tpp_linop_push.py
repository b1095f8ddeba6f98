"""Prune by TPP, fine-tune with LinOP + SP-KD, push: the whole way in one script.

    python examples/tpp_linop_push.py me/digits_slim        # a repo of yours, on the Hub
    python examples/tpp_linop_push.py                       # without a push

On scikit-learn's digits, about three minutes on two CPU cores. Run it from the root of a checkout;
each step leaves a folder in runs/example/, which must not be there yet.
"""

import subprocess
import sys

import timm

import timm_linop

DATA = [
    "--dataset",
    "digits",
    "--img-size",
    "32",
    "--crop-pct",
    "1",
    "--no-aug",
    "--batch-size",
    "32",
]
LAUNCH = ["accelerate", "launch", "--config_file", "accelerate_configs/cpu.yaml", "--quiet"]


def launch(script: str, *flags: str) -> None:
    """Run train.py or prune.py."""
    subprocess.run([*LAUNCH, script, *flags, *DATA], check=True)


# A dense network, which will teach the slim one.
dense = "--model test_resnet --in-chans 1 --epochs 8 --warmup-epochs 1 --lr 0.05"
launch("train.py", *dense.split(), "--output", "runs/example/dense")
# TPP takes channels apart from the others while it trains, until 85% of the weights can go.
tpp = "--method tpp --target-params 0.15 --round-to 1 --epochs 8"
launch("prune.py", "--weights", "runs/example/dense", *tpp.split(), "--output", "runs/example/tpp")
# Its exact wide twin, which follows the dense network's logits; contracted at the end.
linop = "--teacher local-dir:runs/example/dense --epochs 12 --warmup-epochs 1 --lr 0.01"
launch("train.py", "--pruned", "runs/example/tpp", *linop.split(), "--output", "runs/example/slim")

if len(sys.argv) > 1:
    print(timm_linop.push("runs/example/slim", sys.argv[1]))
    name = f"hf-hub:{sys.argv[1]}"
else:
    name = "local-dir:runs/example/slim/slim"
model = timm.create_model(name, pretrained=True)  # as anyone loads it
print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters")
