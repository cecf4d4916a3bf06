"""The nouns that travel: Request, Sequence, StepPlan, StepResult, TokenEvent."""
