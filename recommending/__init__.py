"""Lists, explanations and vectors of a trained run: what recommend.py and explore.py share."""
