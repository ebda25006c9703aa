"""Theory beside the measured numbers: pure functions of numbers, each with its formula and its source."""
