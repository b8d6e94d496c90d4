"""A small witness for logs: signs what only grew, and remembers it in files."""
