"""Reward model training as a Ray job: preference pairs in, a sealed, frozen reward model out."""

from __future__ import annotations

import sys

from jobs.cli import main as cli

# A Ray job: `python -m jobs.train_reward RECIPE [--set KEY=VALUE]`.
if __name__ == "__main__":
    cli.main(["reward", "train", *sys.argv[1:]])
