"""Unlearning from image classifiers: ``python -m experiments.classification``.

``__main__`` is the story, ``recipes`` builds methods from numbers, ``evaluation`` takes
every measure from one pass over each split, ``search`` looks for recipes
(``python -m experiments.tune``), and ``configs/`` holds those that it found, one file a
task.
"""
