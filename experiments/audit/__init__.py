"""Audits of unlearning over a bank of models: ``python -m experiments.audit``.

``__main__`` is the story, ``pool`` draws which examples each model was trained on and
has to forget, ``bank`` trains, unlearns and keeps what every model says of every
example, ``audits`` turns those arrays into a table, and ``pictures`` draws them. The
audits themselves are functions of arrays in ``mujax.auditing``.
"""
