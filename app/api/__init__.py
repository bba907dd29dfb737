"""Routes by noun. Only this package knows the web framework."""
