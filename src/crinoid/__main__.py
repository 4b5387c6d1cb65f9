"""``python -m crinoid``: the same program as the console script."""

from crinoid.core.cli.main import main

if __name__ == "__main__":
    main()
