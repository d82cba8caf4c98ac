"""Plain data that every layer shares: parameters, protocols, noise and maps."""
