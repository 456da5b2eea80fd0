"""`python cli.py ...` from a checkout is `plan ...`."""

from planner.commands import main

if __name__ == "__main__":
    main()
