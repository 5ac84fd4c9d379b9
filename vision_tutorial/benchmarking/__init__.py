"""Speed as ratios: our side and another one, measured in turn in one run."""
