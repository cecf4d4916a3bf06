"""The loop, its process, its client, and the one place that composes it all (build)."""
