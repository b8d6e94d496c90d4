"""Pages for people: what runs, what it spends, what is left. No request leaves the house."""
