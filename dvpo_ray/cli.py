"""``python -m dvpo_ray.cli``: the command line, which lives on the top floor (``jobs.cli``)."""

from dvpo_ray.registry import load_entry_point

if __name__ == "__main__":
    load_entry_point("jobs.cli.main:main")()
