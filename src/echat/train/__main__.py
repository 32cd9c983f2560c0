"""``python -m echat.train recipe.yaml [key=value ...] [--resume]``."""

from __future__ import annotations

import argparse
import sys

from echat.errors import Arguments, command


@command
def main(arguments: Arguments) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m echat.train", description="Train what a recipe describes."
    )
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("overrides", nargs="*", help="key.path=value, wins over the file")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint of the run folder"
    )
    options = parser.parse_intermixed_args(arguments)
    from echat.train.trainer import train

    train(options.recipe, options.overrides, options.resume)


if __name__ == "__main__":
    sys.exit(main())
