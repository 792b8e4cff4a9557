"""One thread for each test process: the models are tiny, and more threads only wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in what tests start
