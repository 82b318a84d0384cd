"""Sleep: what is kept of a context that ends, and of what was known before it."""
