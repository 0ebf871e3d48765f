"""Helpers that know nothing about VAEs: files, validation, errors, signals, process start-up."""
