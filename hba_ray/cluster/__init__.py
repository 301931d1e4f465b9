"""Where work runs: Ray sessions and jobs, forked workers, environments."""
