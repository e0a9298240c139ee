"""The search of recipes under its command name: ``python -m experiments.tune``."""

from experiments.classification.search import main
from experiments.engine import cli

if __name__ == "__main__":
    cli.leave(main())
