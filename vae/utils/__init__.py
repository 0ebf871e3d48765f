"""Small things that know nothing about VAEs: files, validation, signals, process start-up."""
