"""Recipes of the weights that ship with the project: VAE, UNet, CLIP and judge of the postcard world."""
