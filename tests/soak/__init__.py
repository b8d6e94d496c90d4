"""Hours of mixed load on the production layout: what leaks, what is lost."""
