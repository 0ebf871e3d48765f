"""From a configuration, or from a run folder, to checked objects.

Hydra and OmegaConf are used here and in `vae.cli`, and nowhere else.
"""
