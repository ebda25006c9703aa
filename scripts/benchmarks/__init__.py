"""The measurements behind scripts/bench.py: the fixed workload, our side, the peers' sides, and the rows P1 to P12."""
