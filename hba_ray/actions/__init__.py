"""What commands do beside running a spec: describe, judge, check an atlas, export, look at the machine, compare rollouts."""
