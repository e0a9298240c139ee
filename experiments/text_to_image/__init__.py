"""Latent text-to-image models: Stable Diffusion with real weights, and a small one.

``pipeline`` opens a folder of the diffusers layout and writes it again; ``unet``,
``autoencoder`` and ``text_encoder`` are its networks (``layers`` is what they share),
``tokenizer`` reads prompts, and ``weights`` reads and writes the networks' files.
``small`` is a pipeline that two cores train and ``concept`` what is forgotten in it;
methods are in a folder of their own, and ``__main__`` tells the story.
"""
