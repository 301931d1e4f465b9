"""What commands do beside running a spec: describe, judge, check, export, doctor."""
