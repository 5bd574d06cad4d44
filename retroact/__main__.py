"""`python -m retroact`, which is `retroact`."""

import sys


def run() -> None:
    """The command line; Ctrl-C ends it quietly also while it is still being read."""
    try:
        from retroact.cli.app import main
    except KeyboardInterrupt:
        sys.exit(130)  # `codes.STOPPED`, which is not read yet
    main()


if __name__ == "__main__":  # worker processes read this file too
    run()
