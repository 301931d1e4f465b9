"""Where work runs: Ray sessions, jobs on clusters, workers that are forked, and what processes find in their environment."""
