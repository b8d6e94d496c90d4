"""Who calls: API keys, subjects, roles."""
