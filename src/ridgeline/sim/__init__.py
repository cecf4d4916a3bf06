"""What a run would be like: the real schedulers on virtual clocks, one engine or several."""
