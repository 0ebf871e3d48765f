"""The two commands: their arguments, messages and exit statuses."""
