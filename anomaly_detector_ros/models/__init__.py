"""The models: registry, cache, and the sources their files come from."""
