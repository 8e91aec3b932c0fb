"""The weights of models: registry, cache, and the sources their files come from."""
