"""`python -m nestling.cli`: the command line without the script."""

from nestling.cli import main

if __name__ == "__main__":
    main()
