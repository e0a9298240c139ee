"""Latent text-to-image models, Stable Diffusion 1 and 2, with real weights.

``pipeline`` opens a folder of the diffusers layout and writes it again; ``unet``,
``autoencoder`` and ``text_encoder`` are its networks (``layers`` is what they share),
``tokenizer`` reads prompts, and ``weights`` reads and writes the networks' files.
"""
