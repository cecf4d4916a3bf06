"""Tools that know nothing of language models: errors, registries, costs, clocks."""
