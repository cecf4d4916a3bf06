"""The scheduling mechanism, judged through a scripted runner."""
