"""What runs, what waits and why, what failed and what to do: for those who keep it going."""
