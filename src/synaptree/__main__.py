"""`python -m synaptree`: the command line, as torchrun starts it."""

from synaptree.cli import main

if __name__ == "__main__":
    main()
