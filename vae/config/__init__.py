"""Turning a configuration, or a run folder, into checked objects.

Hydra and OmegaConf are used here and in `vae.cli`, and nowhere else.
"""
