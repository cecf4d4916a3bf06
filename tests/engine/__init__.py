"""The loop, its process and its client; scripted.py is the model they run."""
