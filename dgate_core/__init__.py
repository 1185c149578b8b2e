"""D-Gate: pictures in bulk with diffusion models, proved good."""
