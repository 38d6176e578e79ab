"""Images as latents: the autoencoder, the folder that encode_latents.py fills, and training from it."""
