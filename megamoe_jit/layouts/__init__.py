"""Where elements lie in memory: integers and permutations only; no kernel, no rounding."""
