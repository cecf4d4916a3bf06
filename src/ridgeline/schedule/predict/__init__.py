"""How many tokens will this still make: one file a predictor, one line in PREDICTORS."""
