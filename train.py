#!/usr/bin/env python
"""Train a dense timm model, or fine-tune a slim one; ``accelerate launch train.py --help``."""

from timm_linop.cli import train

if __name__ == "__main__":
    train()
