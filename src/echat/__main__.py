"""``python -m echat`` is ``echat``."""

from echat.cli import main

if __name__ == "__main__":
    main()
