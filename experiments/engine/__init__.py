"""What runs any kind of experiment, and knows none.

``bench`` runs a study's seeds and methods and leaves its report, ``study`` one run,
resumed where it was cut off, ``loop`` its epochs; ``store``, ``checkpoints`` and
``cache`` keep, ``progress`` and ``stopwatch`` watch, and ``cli`` goes from flags to an
exit code. ``formats`` reads and writes files of arrays as other programs leave them.
"""
