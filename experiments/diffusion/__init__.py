"""Forgetting a class in a diffusion model: ``python -m experiments.diffusion``.

``__main__`` is the story, ``recipes`` builds methods from numbers, ``generation`` has
the losses of a noise network, draws its images and trains the classifier that judges
them, and ``unet`` is the network.
"""
