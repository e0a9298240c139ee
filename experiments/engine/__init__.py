"""What runs any kind of experiment, and knows none.

``task`` says what a kind of experiment brings, ``bench`` runs a study's seeds and
methods and leaves its report, ``study`` one run, resumed where it was cut off, ``loop``
its epochs, on ``devices`` and in ``processes``, several at once by ``workers`` or
``together``; ``store``, ``checkpoints`` and ``cache`` keep, ``progress`` and
``stopwatch`` watch, and ``cli`` goes from flags to an exit code. ``formats`` reads and
writes files of arrays as other programs leave them.
"""
