"""Populations: the patients who own a privacy budget."""
