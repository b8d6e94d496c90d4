"""Who works here: the workers, by their own sign of life."""
