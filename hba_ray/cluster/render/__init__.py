"""Files that start a cluster, rendered from one infra file, and checked without a cloud: pure functions of `specs.infra.InfraSpec`.

ray_up.py       AWS and Google Cloud: a file for `ray up`
kubernetes.py   a RayJob of KubeRay, what it needs beside it, and Kueue's labels
slurm.py        a batch script
blanks.py       what is still to be filled in, and how a file says so
check.py        what is wrong with such a file
"""
