"""hba_ray: declarative, resumable experiments on human behaviour with Ray.

Importing the package is free: torch and ray are imported only by the floors that need them.
"""

__version__ = "0.1.0"
