"""`python -m hba_ray` is `hba`."""

from hba_ray.cli import main

main()
