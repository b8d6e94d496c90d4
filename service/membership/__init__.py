"""How people and hospitals come in, and who is shut out."""
