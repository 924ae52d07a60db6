"""The training loop, its runs and what they are configured with."""
