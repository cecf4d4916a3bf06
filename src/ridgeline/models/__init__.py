"""What a model is: its numbers, its weights by role, its family's Program; where models come from."""
