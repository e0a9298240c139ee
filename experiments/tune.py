"""The search of recipes under its command name: ``python -m experiments.tune``."""

import sys

from experiments.classification.search import main

if __name__ == "__main__":
    sys.exit(main())
