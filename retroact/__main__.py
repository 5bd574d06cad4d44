"""`python -m retroact`, which is `retroact`."""

from retroact.cli.app import main

if __name__ == "__main__":  # worker processes read this file too
    main()
