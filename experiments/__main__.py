"""Lists the commands: ``python -m experiments``."""

import sys

from experiments.errors import printable

COMMANDS = {
    "classification": "unlearn from an image classifier, beside Retrain",
    "diffusion": "forget a class in a diffusion model, beside Retrain",
    "text_to_image": "forget a concept in a text-to-image model, beside Retrain",
    "ablation": "cross the parts of SalUn, SEMU and CUFG beside Retrain",
    "audit": "audit unlearning over a bank of models",
    "tune": "search a classifier's recipes against a validation Retrain",
    "reports": "put the studies of a results folder side by side",
    "export": "write an unlearned model in the trained one's form",
    "benchmarks": "time the library beside PyTorch",
}


def main(arguments: list[str]) -> int:
    """Prints a line for each command; returns the exit code."""
    width = max(map(len, COMMANDS))
    for name, line in COMMANDS.items():
        print(f"python -m experiments.{name:{width}}  {line}")
    print("\n--help after a command lists its flags.")
    if arguments and arguments[0] not in ("-h", "--help"):
        asked = printable(arguments[0])
        print(f"experiments: got {asked!r}; run one of these.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
