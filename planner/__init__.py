"""Plans how large transformers are laid out over GPUs: what fits, what is fastest, and how we know."""

__version__ = "0.1.0"
