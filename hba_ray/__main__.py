"""`python -m hba_ray` is `hba`."""

from hba_ray.cli.main import main

main()
