#!/usr/bin/env python
"""Prune a trained timm model; ``accelerate launch prune.py --help``."""

from timm_linop.cli import prune

if __name__ == "__main__":
    prune()
