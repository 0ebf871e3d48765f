"""A run folder on disk: its files, its lock, its status, and what the run was made with."""
