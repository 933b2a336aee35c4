"""`python -m controller` is the `glovebox` command."""

from controller.cli import main

if __name__ == "__main__":
    main()
