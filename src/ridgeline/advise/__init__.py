"""Which techniques to turn on for a model, a machine and a workload, by what they are forecast to do."""
