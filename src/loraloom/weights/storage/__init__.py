"""Storage formats of weights, one a file: each file ends in FORMAT (`weights.formats.Format`)."""
