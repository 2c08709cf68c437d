"""The operator's own record of runs. It can be lost: the hosts can rebuild it."""
