"""The whole mission on the simulated town: every step with the commands and nodes that a real robot uses."""
