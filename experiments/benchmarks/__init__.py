"""How fast the library is beside PyTorch: ``python -m experiments.benchmarks``.

``__main__`` is the story, ``cases`` measures what a step of unlearning is made of and
``text_to_image`` a full-size U-Net, ``reference`` says the same in PyTorch, written
from the definitions, ``measuring`` runs both in turns, and ``results`` writes what came
of all machines into ``RESULTS.md``.
"""
