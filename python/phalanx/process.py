"""``multiprocessing.process`` itself, under this package's name."""

import sys
from multiprocessing import process
from multiprocessing.process import *  # noqa: F403

sys.modules[__name__] = process
