"""Reward model training as a Ray job: preference pairs in, a sealed, frozen reward model out."""

from __future__ import annotations

import sys

from jobs.cli import main as cli


def main() -> None:
    """Entry point of a Ray job: ``python -m jobs.train_reward RECIPE [--set KEY=VALUE]``."""
    sys.argv[1:1] = ["reward", "train"]
    cli.main()


if __name__ == "__main__":
    main()
