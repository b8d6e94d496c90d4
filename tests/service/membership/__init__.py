"""People and hospitals: who gets in, and who alone cannot let them."""
