"""What runs: grids, clusters, CTAs, warps, their barriers, asynchronous work, and who goes next."""
