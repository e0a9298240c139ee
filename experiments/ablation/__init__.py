"""Which part of SalUn, SEMU and CUFG does what: ``python -m experiments.ablation``.

``__main__`` is the story. ``cells`` crosses masks, correctors, spaces and curricula and
says with which numbers each combination runs; ``composition`` builds it of the parts
of the library; ``task`` runs and reports it; ``effects`` turns the gaps of all into
main effects and interactions, ``findings`` says them in words, ``pictures`` draws them.
"""
