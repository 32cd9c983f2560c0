"""``python -m echat.train recipe.yaml [key=value ...] [--resume]``."""

from __future__ import annotations

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run a recipe; 0 when it ended or was asked to stop, 2 when something has to be mended first."""
    parser = argparse.ArgumentParser(
        prog="python -m echat.train", description="Train what a recipe describes."
    )
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("overrides", nargs="*", help="key.path=value, wins over the file")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint of the run folder"
    )
    options = parser.parse_intermixed_args(arguments)
    from echat.train.loop import train

    try:
        train(options.recipe, options.overrides, options.resume)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
