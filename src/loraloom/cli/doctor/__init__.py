"""`loraloom doctor`: whether this installation works, on what, and what makes it slow."""
