"""Two runs of one job, before and after a change: what differs, and whether it helped."""
