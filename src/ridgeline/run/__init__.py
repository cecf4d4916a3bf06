"""How a Program runs and how long it takes: binding, runner, counting, estimates, ceilings."""
