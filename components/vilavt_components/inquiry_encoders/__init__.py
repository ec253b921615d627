"""Components of kind inquiry encoder: they turn the text of an inquiry into features that modulators read."""
